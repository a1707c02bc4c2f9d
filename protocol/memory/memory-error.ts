/** A front end described memory that cannot be: overlapping, out of range, or a descriptor that does not hold it. */
export class MemoryError extends Error {
  override readonly name = 'MemoryError';
  readonly code = 'GUEST_MEMORY';
}
