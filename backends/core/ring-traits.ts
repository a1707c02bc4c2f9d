/** What a ring is for, as the core needs to know it. */

export interface RingTraits {
  /**
   * Its heads are buffers for what comes from outside, and not requests: ones that wait are no work. The device says by
   * `vring.noteShort` when it needs more of them.
   */
  readonly offersBuffers: boolean;
  /** It is processed while started but disabled too, without side effects: the device looks at `vring.enabled`. */
  readonly runsDisabled: boolean;
}

/** A ring of requests that wait while it is disabled. */
export const REQUEST_RING: RingTraits = { offersBuffers: false, runsDisabled: false };
