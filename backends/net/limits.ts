/** Numbers of this implementation that several files share. */

/** Queue pairs: the control queue must still be addressable by a vring index of 8 bits. */
export const MAX_PAIRS = 127;
/** Packets of one queue that are handed to the kernel at once. */
export const LOT = 32;
/** Buffers of one packet that the kernel is told of; a chain with more is copied. */
export const MAX_BUFFERS = 64;
