/** What the other end of a vhost-user socket did wrong. The connection is closed; the process goes on. */

/** The peer broke the protocol. The sentence says what, where, value, limit. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
  readonly code = 'VHOST_USER_PROTOCOL';
}

/** The peer closed the connection, or answered a request with a failure. */
export class PeerError extends Error {
  override readonly name = 'PeerError';
  readonly code = 'VHOST_USER_PEER';
}
