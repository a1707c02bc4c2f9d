/** Numbers of this implementation that several files share. */

/** What a daemon keeps within, per guest; see the options of the same names. */
export interface Limits {
  readonly maxConnections: number;
  /** Connections that are not established, with host sockets that did not send their CONNECT line. */
  readonly maxHalfOpen: number;
  /** Bytes of a connection that wait for the host's side: the credit that the guest gets. */
  readonly bufferSize: number;
  /** Milliseconds that a connection may take to be established, or a host's CONNECT line to come. */
  readonly connectTimeout: number;
  /** Milliseconds that the guest has to answer a SHUTDOWN, and the host's side to take what is left. */
  readonly closeTimeout: number;
}

export const DEFAULT_LIMITS: Limits = {
  maxConnections: 1024,
  maxHalfOpen: 128,
  bufferSize: 256 * 1024,
  connectTimeout: 2000,
  closeTimeout: 8000,
};

/** Packets taken from the transmit queue between two looks at the sockets. */
export const TRANSMIT_LOT = 64;
/** Packets and bytes put into the receive queue in one pass. */
export const RECEIVE_LOT = 64;
export const RECEIVE_LOT_BYTES = 512 * 1024;
/** Bytes read from one socket before it is another one's turn: at first, and when it always fills them. */
export const FIRST_READ_BYTES = 4096;
export const MAX_READ_BYTES = 128 * 1024;
/** Resets for unknown connections that wait for receive buffers, before the transmit queue has to wait too. */
export const MAX_WAITING_RESETS = 256;
/** Whole messages of a connection that wait for the host's side: empty ones cost no credit. */
export const MAX_WAITING_MESSAGES = 1024;
