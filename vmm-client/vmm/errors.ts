/** What can be wrong about a virtual machine, by blame. The API turns `code` into an HTTP status, the command into an exit. */

/** The configuration cannot be: a value out of range, a file of the wrong kind, a device that contradicts itself. */
export class VmConfigError extends Error {
  override readonly name = 'VmConfigError';
  readonly code = 'VM_CONFIG';
}

/**
 * The request does not fit the state of the machine. `VM_NOT_CREATED`: there is no configuration; `VM_STATE`: there is,
 * and the machine is not in the state that the request needs.
 */
export class VmStateError extends Error {
  override readonly name = 'VmStateError';
  readonly code: 'VM_NOT_CREATED' | 'VM_STATE';

  constructor(code: 'VM_NOT_CREATED' | 'VM_STATE', message: string) {
    super(message);
    this.code = code;
  }
}

/** What was asked for is there already: a device with this id, a second vsock device. */
export class VmConflictError extends Error {
  override readonly name = 'VmConflictError';
  readonly code = 'VM_CONFLICT';
}

/** The machine has nothing of the name that was given. */
export class VmNotFoundError extends Error {
  override readonly name = 'VmNotFoundError';
  readonly code = 'VM_NOT_FOUND';
}

/** The machine could not be built or went wrong while it ran, through no fault of the configuration's. */
export class VmError extends Error {
  override readonly name = 'VmError';
  readonly code = 'VM';
}
