/** Literal bytes in tests, written as a dump shows them. */

/** The bytes of a hexadecimal dump; blanks and line ends separate at will. @throws Error - something else is in it */
export const hex = (dump: string): Uint8Array => {
  const digits = dump.replace(/\s+/g, '');
  if (!/^([0-9a-f]{2})*$/.test(digits)) throw new Error(`not a hexadecimal dump: ${dump}`);
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
};

/** A dump of bytes, for comparisons that fail readably. */
export const dump = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
