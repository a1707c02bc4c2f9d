/**
 * A well-formed request that cannot be done here: answered with a failure when the front end asked for an answer,
 * otherwise the connection is closed.
 */
export class Refused extends Error {
  override readonly name = 'Refused';
  readonly code = 'REQUEST_REFUSED';
}
