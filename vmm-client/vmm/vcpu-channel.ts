/**
 * What the main thread and the thread of a vCPU share: one block of shared memory. The vCPU's thread asks (an access that
 * somebody has to answer), rings the doorbell, an eventfd that the main thread watches, and sleeps until it is answered.
 *
 *     words  0 CONTROL   main -> vCPU: what it is to do next
 *            1 STATE     vCPU -> main: what it does
 *            2 REQUEST   1 from the question to the answer
 *            3 KIND      IS_MEMORY | IS_WRITE
 *            4 SIZE      bytes of one value: 1, 2, 4 or 8
 *            5 COUNT     values (string instructions have many), 1 to MAX_COUNT
 *            6, 7 ADDRESS  low and high half
 *            8 THREAD    the vCPU's thread id
 *            9 FAULT     why it stopped: the exit reason, and 10 its detail
 *           16 EXITS     + exit reason: how often
 *     bytes  DATA_OFFSET  COUNT values
 */

export const CONTROL = 0;
export const STATE = 1;
export const REQUEST = 2;
export const KIND = 3;
export const SIZE = 4;
export const COUNT = 5;
export const ADDRESS_LOW = 6;
export const ADDRESS_HIGH = 7;
export const THREAD = 8;
export const FAULT = 9;
export const FAULT_DETAIL = 10;
export const EXITS = 16;
export const EXIT_REASONS = 48;
export const DATA_OFFSET = 4 * (EXITS + EXIT_REASONS);
/** KVM hands string instructions over in portions of at most a page. */
export const DATA_BYTES = 4096;
export const CHANNEL_BYTES = DATA_OFFSET + DATA_BYTES;

/** CONTROL. */
export const HOLD = 0;
export const RUN = 1;
export const STOP = 2;

/**
 * STATE. HELD: outside the guest, between two instructions, until CONTROL changes; FAULTED: the guest cannot go on (FAULT
 * says why).
 */
export const STARTING = 0;
export const RUNNING = 1;
export const HELD = 2;
export const FAULTED = 3;

/** KIND. */
export const IS_WRITE = 1;
export const IS_MEMORY = 2;

/** Messages of the thread: it can take a vCPU for the first time; the one it had was stopped. */
export const READY = 'ready';
export const IDLE = 'idle';

/** What the thread of a vCPU is started with. */
export interface VcpuThreadData {
  readonly channel: SharedArrayBuffer;
  readonly location: { readonly fd: number; readonly runAddress: number; readonly runBytes: number };
  readonly doorbell: number;
}
