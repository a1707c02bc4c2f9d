/** A front end in front of scripted back ends, with memory and rings: for tests of what goes over the socket. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect } from 'vitest';
import { createEventFd, OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { UnixStream } from '../../../../protocol/sys/unix-socket.ts';
import { Endpoint } from '../../../../protocol/vhost-user/endpoint.ts';
import { type FrontendOptions, VhostUserFrontend } from '../../../../vmm-client/frontend/frontend.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import type { Vring } from '../../../../vmm-client/frontend/vring.ts';
import { countOwnFds } from '../../../support/frontend/process-probe.ts';
import { type Script, ScriptedBackend } from './scripted-backend.ts';

export const mask = (...bits: number[]): bigint => bits.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n);

/** The ring of the tests: 8 entries at offsets 0, 0x1000 and 0x2000 of a memory. */
export interface TestRing {
  readonly vring: Vring;
  readonly kick: OwnedFd;
  readonly call: OwnedFd;
  readonly error: OwnedFd;
}

export class FrontendBench {
  #directory = '';
  #fdsBefore = 0;
  #closing: { close(): void }[] = [];

  /** Registers itself with the tests of the file; every test ends with as many descriptors as it began with. */
  constructor() {
    beforeEach(() => {
      this.#fdsBefore = countOwnFds();
      this.#directory = mkdtempSync(join(tmpdir(), 'ringside-frontend-'));
    });
    afterEach(() => {
      for (const closable of this.#closing.splice(0).reverse()) closable.close();
      rmSync(this.#directory, { recursive: true, force: true });
      expect(countOwnFds()).toBe(this.#fdsBefore);
    });
  }

  /** Closes it at the end of the test. */
  keep<T extends { close(): void }>(closable: T): T {
    this.#closing.push(closable);
    return closable;
  }

  socket(name = 'socket'): string {
    return join(this.#directory, name);
  }

  listen(script: Partial<Script>, name?: string): ScriptedBackend {
    return this.keep(new ScriptedBackend(this.socket(name), script));
  }

  async connect(script: Partial<Script>, options: FrontendOptions = {}) {
    const backend = this.listen(script);
    const frontend = this.keep(await VhostUserFrontend.connect(this.socket(), options));
    return { backend, frontend };
  }

  memory(bytes = 65536, guestAddress = 0x1_0000_0000, iova?: number): SharedMemory {
    return this.keep(new SharedMemory(bytes, guestAddress, iova));
  }

  ring(memory: SharedMemory, index = 0, resume: Vring['resume'] = () => 0): TestRing {
    const [kick, call, error] = [createEventFd(), createEventFd(), createEventFd()].map((fd) => this.keep(fd)) as [
      OwnedFd,
      OwnedFd,
      OwnedFd,
    ];
    const { userAddress } = memory;
    const vring = {
      index,
      size: 8,
      descriptorTable: userAddress,
      availRing: userAddress + 0x1000,
      usedRing: userAddress + 0x2000,
      kick,
      call,
      error,
      resume,
      notify: () => undefined,
    };
    return { vring, kick, call, error };
  }

  /** The back end's end of its request channel. */
  channel(backend: ScriptedBackend): Endpoint {
    const fd = backend.channel?.take() ?? -1;
    backend.channel = undefined;
    return this.keep(new Endpoint(new UnixStream(new OwnedFd(fd))));
  }
}

/** A u64 as it is on the wire. */
export const le64 = (value: number | bigint): string => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes.toString('hex');
};
