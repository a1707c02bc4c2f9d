/** Finds a machine with a KVM that runs operating systems: this one where it can, else an emulated one. */

import { it } from 'vitest';
import type { Cleanup } from '../cleanup.ts';
import { probeKvm } from '../kvm-probe.ts';
import type { PeerName } from '../peers.ts';
import { type KvmHost, type KvmHostContents, LocalKvmHost } from './kvm-host.ts';
import { bootNestedKvmHost, nestedKvmPeers } from './nested-kvm.ts';

/** What a test needs for openKvmHost, whatever this machine can do. */
export const kvmHostPeers: readonly PeerName[] = nestedKvmPeers;

/** Opens the machine, and says which it is on stderr. With RINGSIDE_TEST_KVM=nested it is the emulated one in any case. */
export const openKvmHost = async (cleanup: Cleanup, contents: KvmHostContents): Promise<KvmHost> => {
  const ability = probeKvm();
  const nested = process.env.RINGSIDE_TEST_KVM === 'nested' || !ability.full;
  const why = ability.full ? 'RINGSIDE_TEST_KVM=nested' : ability.why;
  const host = nested ? await bootNestedKvmHost(cleanup, contents, why) : new LocalKvmHost(cleanup);
  process.stderr.write(`virtual machines run on ${host.description}\n`);
  return host;
};

/** A test that takes half a minute and more on an emulated machine. `scripts/test --kvm` runs them all. */
export const itAtLength = it.runIf(process.env.RINGSIDE_TEST_KVM !== undefined);
