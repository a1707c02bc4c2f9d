/**
 * The tables of docs/conformance.md that are made from the code: what each daemon offers, serves and refuses, what the
 * front end uses, and the tests that prove it. `node dist/scripts/checks/conformance/main.js DIRECTORY` fails when an entry
 * has no proof, when a test that is named does not exist, or when the document differs; `--write` brings it up to date.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PROTOCOL_FEATURE_NAMES } from '../../../protocol/vhost-user/features.ts';
import { BACKEND, FRONTEND } from '../../../protocol/vhost-user/messages.ts';
import * as blk from '../../../protocol/virtio/blk.ts';
import * as net from '../../../protocol/virtio/net.ts';
import * as reserved from '../../../protocol/virtio/reserved-features.ts';
import * as vsock from '../../../protocol/virtio/vsock.ts';
import { readSources } from '../sources.ts';
import { BLK_FEATURES, NET_FEATURES, VSOCK_FEATURES } from './device-features.ts';
import type { Entry } from './entry.ts';
import { PROTOCOL_FEATURES, RING_FEATURES, UNNAMED_RING_FEATURES } from './features.ts';
import { BACKEND_MESSAGES, FRONTEND_MESSAGES } from './messages.ts';
import { DAEMONS, type DaemonName, type Masks, type Observed, observe, wordsOf } from './observed.ts';
import { ANSWERED, NEGOTIATED, REFUSED_BY_FRONTEND, UNUSED_FEATURES, UNUSED_PROTOCOL_FEATURES } from './proofs.ts';
import { testNames } from './test-names.ts';

const DOCUMENT = 'docs/conformance.md';
const WHERE_POSSIBLE = 'where possible';

const directory = process.argv[2] ?? '.';
const write = process.argv.includes('--write');
const sources = readSources(directory);
const tests = testNames(sources);
const findings: string[] = [];

/** Proofs in the order in which the tables name them: their numbers. */
const proofs = new Map<string, number>();

function numberOf(proof: string): number {
  const known = proofs.get(proof);
  if (known !== undefined) return known;
  if (!tests.has(proof)) findings.push(`there is no test "${proof}"`);
  proofs.set(proof, proofs.size + 1);
  return proofs.size;
}

/** How an entry stands: what the columns show of it, and whom that concerns. */
interface Standing {
  readonly name: string;
  readonly entry: Entry | undefined;
  /** The columns of daemons, and whether any of them has it, and any has it not. */
  readonly cells: readonly string[];
  readonly positive: boolean;
  readonly negative: boolean;
  /** The column of the front end, and whether it uses it. */
  readonly frontend: string;
  readonly used: boolean;
  /** The tests of every entry of the table. */
  readonly general: readonly string[];
}

/** The cells of a row behind its number, with what is missing noted. */
function row(number: number | string, standing: Standing): string {
  const { name, entry = {}, cells, positive, negative, frontend, used, general } = standing;
  const complain = (what: string) => findings.push(`${name} (${number}): ${what}`);
  if (positive && (entry.proof ?? []).length === 0) complain('no test proves what a daemon does with it');
  if (negative && entry.why === undefined) complain('no reason is given why a daemon does not have it');
  if (used && (entry.used ?? []).length === 0) complain('no test proves what the front end does with it');
  const remarks = [positive ? entry.remark : undefined, negative ? entry.why : undefined];
  const named = [...general, ...(positive ? (entry.proof ?? []) : []), ...(used ? (entry.used ?? []) : [])];
  const numbers = [...new Set(named.map(numberOf))].sort((a, b) => a - b);
  const text = remarks.filter((remark) => remark !== undefined).join('; ');
  return `| ${[number, name, ...cells, frontend, text, numbers.join(' ')].join(' | ')} |`;
}

function table(columns: readonly string[], rows: readonly string[]): string[] {
  return [`| ${columns.join(' | ')} |`, `|${' --- |'.repeat(columns.length)}`, ...rows];
}

/** Entries that the code does not know are forgotten ones. */
function checkNames(what: string, entries: Readonly<Record<string, Entry>>, names: Iterable<string>): void {
  const known = new Set(names);
  for (const name of Object.keys(entries)) if (!known.has(name)) findings.push(`${what} ${name} does not exist`);
}

const words = {
  frontend: wordsOf(sources, /^vmm-client\/frontend\//),
  /** With the drivers, and what their users ask of them. */
  driver: wordsOf(sources, /^vmm-client\/(frontend|driver|cli)\/(?!feature-names)/),
};

function frontendMessages(observed: ReadonlyMap<DaemonName, Observed>): string[] {
  const rows = Object.entries(FRONTEND).map(([name, { id }]) => {
    const entry: Entry = FRONTEND_MESSAGES[name as keyof typeof FRONTEND];
    const depends = entry.hostDependent === true;
    const served = DAEMONS.map((daemon) => depends || observed.get(daemon)?.unknown.has(name) === false);
    const used = words.frontend.has(`FRONTEND.${name}`);
    return row(id, {
      name,
      entry,
      cells: served.map((is) => (depends ? WHERE_POSSIBLE : is ? 'served' : 'refused')),
      positive: served.includes(true),
      negative: served.includes(false),
      frontend: used ? 'sent' : 'no',
      used,
      general: [ANSWERED],
    });
  });
  return table(['no.', 'message', ...DAEMONS, 'front end', '', 'proof'], rows);
}

function backendMessages(): string[] {
  const core = wordsOf(sources, /^backends\/core\//);
  const rows = Object.entries(BACKEND).map(([name, { id }]) => {
    const entry = BACKEND_MESSAGES[name as keyof typeof BACKEND];
    const sent = DAEMONS.map((daemon) => {
      const { cause = '' } = entry;
      const isCaused = sources.some(({ path, text }) => path.startsWith(`backends/${daemon}/`) && text.includes(cause));
      return isCaused && core.has(`BACKEND.${name}`);
    });
    const used = words.frontend.has(`BACKEND.${name}`);
    return row(id, {
      name,
      entry,
      cells: sent.map((is) => (is ? 'sent' : 'never')),
      positive: sent.includes(true),
      negative: sent.includes(false),
      frontend: used ? 'served' : 'refused',
      used,
      general: used ? [] : [REFUSED_BY_FRONTEND],
    });
  });
  return table(['no.', 'message', ...DAEMONS, 'front end', '', 'proof'], rows);
}

/** Whether a bit is offered: yes, no, or with which options. */
function offer(masks: Masks | undefined, bit: number): string {
  const options = [...(masks ?? [])];
  const having = options.filter(([, mask]) => reserved.hasFeature(mask, bit)).map(([option]) => option);
  const lacking = options.filter(([, mask]) => !reserved.hasFeature(mask, bit)).map(([option]) => option);
  const names = (list: readonly string[]) => list.map((option) => `\`${option.replace(/=.*/, '')}\``).join(', ');
  if (having.length === 0) return 'no';
  if (lacking.length === 0) return 'offered';
  return having.includes('') ? `not with ${names(lacking)}` : `with ${names(having)}`;
}

interface BitTable {
  /** What a bit is called in messages. */
  readonly what: string;
  readonly bits: ReadonlyMap<number, string>;
  readonly entries: Readonly<Record<string, Entry>>;
  readonly columns: ReadonlyMap<string, Masks | undefined>;
  /** Whether the front end uses the bit of this name. */
  readonly isUsed: (name: string) => boolean;
  /** The test that it uses no others. */
  readonly unused: string;
}

function bitTable({ what, bits, entries, columns, isUsed, unused }: BitTable): string[] {
  checkNames(what, entries, bits.values());
  const inOrder = [...bits].sort(([a], [b]) => a - b);
  const rows = inOrder.map(([bit, name]) => {
    const entry = entries[name];
    const cells = [...columns.values()].map((masks) => (entry?.hostDependent ? WHERE_POSSIBLE : offer(masks, bit)));
    return row(bit, {
      name,
      entry,
      cells,
      positive: cells.some((cell) => cell !== 'no'),
      negative: cells.includes('no'),
      frontend: isUsed(name) ? 'used' : 'no',
      used: isUsed(name),
      general: isUsed(name) ? [NEGOTIATED] : [NEGOTIATED, unused],
    });
  });
  return table(['bit', 'name', ...columns.keys(), 'front end', '', 'proof'], rows);
}

/** Bits that a module of protocol/virtio names, such as VIRTIO_BLK_F_RO, by their numbers, without the prefix. */
function bitsOf(module: Readonly<Record<string, unknown>>, prefix: RegExp): Map<number, string> {
  const constants = Object.entries(module).filter(([name]) => prefix.test(name));
  return new Map(constants.map(([name, bit]) => [bit as number, name.replace(prefix, '')]));
}

const RING_PREFIX = /^(VIRTIO|VHOST|VHOST_USER)_F_/;
const FIRST_RING_BIT = 24;
const LAST_RING_BIT = 49;

const isRingBit = (bit: number) => bit >= FIRST_RING_BIT && bit <= LAST_RING_BIT;

/** What is offered and has no name. */
function checkOffered(daemon: DaemonName, masks: Masks, known: (bit: number) => boolean): void {
  for (let bit = 0; bit < 64; bit += 1) {
    if (offer(masks, bit) !== 'no' && !known(bit))
      findings.push(`vhost-user-${daemon} offers bit ${bit}, which has no name`);
  }
}

function featureTables(observed: ReadonlyMap<DaemonName, Observed>): Record<string, string[]> {
  const ring = new Map([...bitsOf(reserved, RING_PREFIX), ...UNNAMED_RING_FEATURES]);
  const devices = {
    blk: { bits: bitsOf(blk, /^VIRTIO_BLK_F_/), entries: BLK_FEATURES, prefix: 'VIRTIO_BLK_F_' },
    net: { bits: bitsOf(net, /^VIRTIO_NET_F_/), entries: NET_FEATURES, prefix: 'VIRTIO_NET_F_' },
    vsock: { bits: bitsOf(vsock, /^VIRTIO_VSOCK_F_/), entries: VSOCK_FEATURES, prefix: 'VIRTIO_VSOCK_F_' },
  };
  const columnsOf = (what: 'features' | 'protocolFeatures') =>
    new Map(DAEMONS.map((daemon) => [daemon, observed.get(daemon)?.[what]]));
  for (const [daemon, { features, protocolFeatures }] of observed) {
    checkOffered(daemon, features, (bit) => (isRingBit(bit) ? ring : devices[daemon].bits).has(bit));
    checkOffered(daemon, protocolFeatures, (bit) => PROTOCOL_FEATURE_NAMES.has(bit));
  }
  const tables: Record<string, string[]> = {
    'protocol-features': bitTable({
      what: 'protocol feature',
      bits: PROTOCOL_FEATURE_NAMES,
      entries: PROTOCOL_FEATURES,
      columns: columnsOf('protocolFeatures'),
      isUsed: (name) => words.frontend.has(`VHOST_USER_PROTOCOL_F_${name}`),
      unused: UNUSED_PROTOCOL_FEATURES,
    }),
    'ring-features': bitTable({
      what: 'feature',
      bits: ring,
      entries: RING_FEATURES,
      columns: columnsOf('features'),
      isUsed: (name) => ['VIRTIO', 'VHOST', 'VHOST_USER'].some((prefix) => words.driver.has(`${prefix}_F_${name}`)),
      unused: UNUSED_FEATURES,
    }),
  };
  for (const daemon of DAEMONS) {
    const { bits, entries, prefix } = devices[daemon];
    tables[`${daemon}-features`] = bitTable({
      what: `feature of ${daemon}`,
      bits,
      entries,
      columns: new Map([[daemon, observed.get(daemon)?.features]]),
      isUsed: (name) => words.driver.has(`${prefix}${name}`),
      unused: UNUSED_FEATURES,
    });
  }
  return tables;
}

/** The document with its generated parts, which lie between `<!-- NAME -->` and `<!-- / -->`, as they are to be. */
function fill(text: string, parts: Readonly<Record<string, readonly string[]>>): string {
  let filled = text;
  for (const [name, lines] of Object.entries(parts)) {
    const place = new RegExp(`(<!-- generated: ${name} -->\n)[^]*?(\n<!-- / -->)`);
    if (!place.test(filled)) findings.push(`${DOCUMENT} has no place for ${name}`);
    filled = filled.replace(place, (_, begin, end) => `${begin}\n${lines.join('\n')}\n${end}`);
  }
  return filled;
}

const observed = new Map<DaemonName, Observed>();
// Every daemon is waited for, also when one of them fails: none is left behind.
const seen = await Promise.allSettled(DAEMONS.map(async (name) => observed.set(name, await observe(directory, name))));
for (const result of seen) if (result.status === 'rejected') throw result.reason;
const parts = {
  messages: frontendMessages(observed),
  'backend-messages': backendMessages(),
  ...featureTables(observed),
  proofs: [...proofs].map(([proof, number]) => {
    const [file, title] = proof.split(/: (.*)/s);
    return `${number}. [${file}](../test/${file}.test.ts): ${title}`;
  }),
};
const path = join(directory, DOCUMENT);
const present = readFileSync(path, 'utf8');
const wanted = fill(present, parts);
if (write) writeFileSync(path, wanted);
else if (wanted !== present) findings.push(`${DOCUMENT} is not up to date: scripts/check --fix`);

for (const finding of findings) process.stderr.write(`conformance: ${finding}\n`);
process.stdout.write(`${proofs.size} tests named, ${findings.length} findings\n`);
process.exitCode = findings.length === 0 ? 0 : 1;
