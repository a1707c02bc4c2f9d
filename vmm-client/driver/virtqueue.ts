/**
 * The driver's side of one virtqueue, whatever its layout: chains are staged, made visible together by `publish`, and
 * taken back by `reap`. Two layouts: `split-virtqueue.ts` and `packed-virtqueue.ts`. Nothing here allocates after
 * construction, and nothing here waits. Source: VIRTIO 1.3, 2.6 Virtqueues.
 */

/** `reap`: nothing is used. */
export const NOTHING_USED = -1;
/** `reap`: the device wrote what it must not; see `fault`. */
export const RING_FAULT = -2;

/** What was negotiated of the ring. */
export interface RingFeatures {
  readonly packed: boolean;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
}

export interface VirtqueueDriverOptions extends Omit<RingFeatures, 'packed'> {
  /** Entries, up to 32768; a power of two in a split queue. */
  readonly size: number;
  /** Descriptors that one chain may have. */
  readonly maxChain: number;
}

export interface VirtqueueDriver {
  readonly size: number;
  /**
   * Offsets into the shared memory. Descriptor table, available ring and used ring; or descriptor ring, driver and device
   * event suppression.
   */
  readonly descriptorArea: number;
  readonly driverArea: number;
  readonly deviceArea: number;
  /** Base of a ring that nobody used: where the back end begins, as SET_VRING_BASE says it. */
  readonly initialBase: number;
  /** What the device did wrong when `reap` said RING_FAULT. */
  readonly fault: string;
  /**
   * Bytes that the device wrote by its own account to the chain that `reap` took last. With IN_ORDER all writable ones for
   * a chain whose used entry it left out.
   */
  readonly usedLength: number;
  /** Chains that the device has, or will have after `publish`. */
  readonly outstanding: number;

  /** Begins a chain. One that is not pushed is forgotten. */
  startChain(): void;

  /** Adds a buffer at a guest address; readable ones before writable ones. Returns false when there is no room. */
  addBuffer(guestAddress: number, length: number, writable: boolean): boolean;

  /**
   * Stages the chain. `token` (31 bits) is what `reap` returns for it. Returns false, with nothing staged, when the chain
   * is empty or a buffer did not fit.
   */
  pushChain(token: number): boolean;

  /** Makes what was staged visible to the device. Returns whether the device has to be kicked. */
  publish(): boolean;

  /** Takes one used chain. Returns its token, NOTHING_USED or RING_FAULT. */
  reap(): number;

  /**
   * Asks for an interrupt at the next used chain. Returns false when there is one already: reap again instead of sleeping.
   */
  armInterrupt(): boolean;

  /** Asks for no interrupts while the driver polls. The device may still send one. */
  disarmInterrupt(): void;

  /**
   * Prepares the ring for a back end that starts anew, after everything used was reaped. With `keepsInflight` the ring
   * stays as it is, for a back end that remembers what it had taken; otherwise every chain that is outstanding is made
   * available once more. Returns the base.
   */
  resume(keepsInflight: boolean): number;
}
