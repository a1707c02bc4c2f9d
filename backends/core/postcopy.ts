/**
 * Postcopy live migration, the destination's side: the guest goes on here before all of its memory has come. A page that
 * is missing is waited for where it is touched, in JavaScript or in a system call; the front end, which has a copy of our
 * userfaultfd, has it sent. Source: vhost-user, Postcopy and POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END, SET_MEM_TABLE,
 * ADD_MEM_REG. See docs/adr/0023-postcopy.md.
 *
 *     off --ADVISE--> advised --LISTEN--> listening --END--> off
 *
 * While listening a change of the memory is answered with the addresses that it has here, and then acknowledged by the front
 * end: until that, nobody reads what is waited for, so nobody may touch a page.
 */

import { Worker } from 'node:worker_threads';
import type { MemoryRegion } from '../../protocol/memory/guest-memory.ts';
import { duplicateFd, type OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { createEmptyFile, UserFault } from '../../protocol/sys/userfault.ts';
import { closeAll, type IncomingMessage } from '../../protocol/vhost-user/endpoint.ts';
import { ProtocolError } from '../../protocol/vhost-user/errors.ts';
import { FRONTEND } from '../../protocol/vhost-user/messages.ts';
import { U64 } from '../../protocol/vhost-user/payloads.ts';
import { LateExtents } from './late-extents.ts';
import type { GuardianData } from './postcopy-guardian.ts';
import { Refused } from './refused.ts';

const PAGE_BYTES = 4096;
const U64_BYTES = 8;

/**
 * What an acknowledgement may be called. The text says an empty SET_MEM_TABLE. QEMU sends the request that it sent last with
 * a u64 of 0, which is 0 when it had nothing to change.
 */
const ACKNOWLEDGEMENTS: readonly number[] = [
  FRONTEND.SET_MEM_TABLE.id,
  FRONTEND.ADD_MEM_REG.id,
  FRONTEND.REM_MEM_REG.id,
  0,
];

/** The thread of postcopy-guardian.ts. */
export interface Guardian {
  /** Ends it. */
  stop(): Promise<void>;
}

/** Starts one; the descriptors become its own. */
export type StartGuardian = (data: GuardianData) => Promise<Guardian>;

async function startGuardianThread(workerData: GuardianData): Promise<Guardian> {
  const worker = new Worker(new URL('./postcopy-guardian.js', import.meta.url), { workerData });
  await new Promise<void>((resolve, reject) => {
    worker.once('message', () => resolve());
    worker.once('error', (error) => reject(new Refused(`no thread can be had: ${error.message}`)));
  });
  worker.removeAllListeners('error');
  return {
    stop: () =>
      new Promise((resolve) => {
        worker.once('exit', () => resolve());
        worker.postMessage('end');
      }),
  };
}

interface Active {
  readonly userFault: UserFault;
  readonly empty: OwnedFd;
  readonly extents: LateExtents;
  readonly guardian: Guardian;
  listening: boolean;
}

export class Postcopy {
  readonly #socket: number;
  readonly #startGuardian: StartGuardian;
  #active: Active | undefined;
  #awaiting = false;
  #ended = false;

  /** @param socket descriptor of the front end's connection */
  constructor(socket: number, startGuardian: StartGuardian = startGuardianThread) {
    this.#socket = socket;
    this.#startGuardian = startGuardian;
  }

  /** Memory that comes from now on comes late. */
  get isListening(): boolean {
    return this.#active?.listening === true;
  }

  /** The front end has been told where memory is, and has not said that it knows: no page may be touched. */
  get isAwaiting(): boolean {
    return this.#awaiting;
  }

  /**
   * POSTCOPY_ADVISE: the descriptor that the front end gets. QEMU asks once for each pair of queues of a network device, on
   * the same connection, and last for the first pair, for which alone it knows in time where the memory is: the last
   * descriptor is the one at which pages are asked for.
   * @throws SysError - this process cannot have a userfaultfd
   * @throws Refused - the memory comes late already
   */
  async advise(): Promise<OwnedFd> {
    if (this.isListening) throw new Refused('it comes before POSTCOPY_LISTEN');
    if (this.#active !== undefined) await this.#leave(this.#active);
    this.#active = await this.#begin();
    return this.#active.userFault.fd.duplicate();
  }

  async #begin(): Promise<Active> {
    const extents = new LateExtents();
    const userFault = new UserFault();
    const kept = [userFault.fd];
    const given: OwnedFd[] = [];
    const give = (fd: OwnedFd): number => {
      given.push(fd);
      return fd.fd;
    };
    try {
      const empty = createEmptyFile();
      kept.push(empty);
      const guardian = await this.#startGuardian({
        socket: give(duplicateFd(this.#socket)),
        userFault: give(userFault.fd.duplicate()),
        empty: give(empty.duplicate()),
        extents: extents.shared,
      });
      for (const fd of given) fd.take();
      return { userFault, empty, extents, guardian, listening: false };
    } catch (error) {
      closeAll([...kept, ...given]);
      throw error;
    }
  }

  /** POSTCOPY_LISTEN. @throws Refused - there was no ADVISE, or there is memory that did not come late */
  listen(hasMemory: boolean): void {
    if (this.#active === undefined) throw new Refused('it comes after POSTCOPY_ADVISE');
    if (this.isListening) return;
    if (hasMemory) throw new Refused('there is guest memory already, whose pages would not be waited for');
    this.#active.listening = true;
  }

  /**
   * A region that came while listening: its pages are waited for, once the front end has acknowledged.
   * @throws SysError - its pages cannot be waited for
   * @throws Refused - the front end is gone
   */
  register({ mapping }: MemoryRegion): void {
    const { userFault, extents } = this.#active as Active;
    const { address } = mapping;
    const length = Math.ceil(mapping.length / PAGE_BYTES) * PAGE_BYTES;
    userFault.register(address, length);
    if (!extents.add({ address, length })) {
      userFault.unregister(address, length);
      throw new Refused('nobody brings its pages any more');
    }
    this.#awaiting = true;
  }

  /** A region is about to go. Nobody waits for its pages. */
  forget({ mapping }: MemoryRegion): void {
    this.#active?.extents.remove(mapping.address);
  }

  /**
   * Whether a message acknowledges what was answered. With nothing to change, QEMU acknowledges all the same.
   * @throws ProtocolError - it says that the front end failed
   */
  isAcknowledgement({ id, payload, fds }: IncomingMessage): boolean {
    if (!this.isListening || fds.length > 0 || !ACKNOWLEDGEMENTS.includes(id)) return false;
    // An empty table may be just that.
    if (id === FRONTEND.SET_MEM_TABLE.id && !this.#awaiting) return false;
    if (payload.length === 0) return true;
    if (payload.length !== U64_BYTES) return false;
    if (U64.decode(payload) !== 0n) throw new ProtocolError('the front end says that it cannot bring pages');
    return true;
  }

  /** The front end knows where the memory is. */
  acknowledge(): void {
    this.#awaiting = false;
  }

  /** POSTCOPY_END: every page has come. QEMU says it as often as it said POSTCOPY_ADVISE. @throws Refused, SysError */
  async end(): Promise<void> {
    if (this.#awaiting) throw new Refused('the memory that was answered is not acknowledged');
    const active = this.#active;
    if (active === undefined) {
      if (!this.#ended) throw new Refused('it comes after POSTCOPY_ADVISE');
      return;
    }
    const { userFault, extents } = active;
    extents.drain(({ address, length }) => userFault.unregister(address, length));
    this.#ended = true;
    await this.#leave(active);
  }

  /** The connection ended before that: nobody brings pages any more, and who waits for one fails. */
  async abandon(): Promise<void> {
    const active = this.#active;
    if (active === undefined) return;
    active.extents.abandon(active.userFault.fd.fd, active.empty.fd);
    await this.#leave(active);
  }

  async #leave({ userFault, empty, guardian }: Active): Promise<void> {
    this.#active = undefined;
    userFault.close();
    empty.close();
    await guardian.stop();
  }
}
