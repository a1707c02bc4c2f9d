/** Words that options of `bench` commands take, apart from the loads themselves: help is printed without loading those. */

/** How `ringside blk bench` goes over the disk. */
export const ACCESS_PATTERNS = ['read', 'write', 'randread', 'randwrite', 'randrw'] as const;
export type AccessPattern = (typeof ACCESS_PATTERNS)[number];

/** Which way packets of `ringside net bench` go. */
export const DIRECTIONS = ['tx', 'rx', 'both'] as const;
export type Direction = (typeof DIRECTIONS)[number];

/** What `ringside vsock bench` measures: bytes sent, bytes received, round trips, connections to the host and from it. */
export const VSOCK_LOADS = ['tx', 'rx', 'rr', 'connect', 'accept'] as const;
export type VsockLoadName = (typeof VSOCK_LOADS)[number];
