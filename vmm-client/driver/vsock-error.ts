/** What can become of a connection, as errors of sockets are called. */

/**
 * A connection that was refused, reset, not answered in time, or is used after its end. `code` is the errno that a socket
 * would have given: ECONNREFUSED, ECONNRESET, ETIMEDOUT, EPIPE, EMSGSIZE, EPROTO, EADDRINUSE, ECANCELED, ENETRESET.
 */
export class VsockError extends Error {
  override readonly name = 'VsockError';
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}
