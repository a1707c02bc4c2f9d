/**
 * Which packets the driver wants, as it says on the control queue, and the same as a classic BPF program for the TAP, so
 * that the kernel drops the others before they wake us. Source: VIRTIO 1.3, 5.1.6.5.1 Packet Receive Filtering, 5.1.6.5.2
 * Setting MAC Address Filtering, 5.1.6.5.3 VLAN Filtering; what the standard leaves open is as QEMU has it. For BPF:
 * linux/filter.h, Documentation/networking/filter.rst.
 *
 *     tagged for a VLAN that was not asked for -> drop
 *     group bit clear -> own address and unicast table, or all of them, or none
 *     group bit set   -> broadcast, multicast table, or all of them, or none
 *
 * Both tables have few entries and a VLAN takes one bit of 128 words, so the longest program is far from the kernel's
 * limit of 4096 instructions.
 */

import { ETHERNET_ADDRESS_BYTES } from '../../protocol/virtio/net.ts';

/** Addresses a table may have; a longer one stands for every address of its kind. */
export const MAX_TABLE_ADDRESSES = 64;
export const MAX_VLANS = 4096;
const VLANS_PER_WORD = 32;

/** Modes of VIRTIO_NET_CTRL_RX, in the order of its commands. */
export const RECEIVE_MODES = [
  'promiscuous',
  'allMulticast',
  'allUnicast',
  'noMulticast',
  'noUnicast',
  'noBroadcast',
] as const;
export type ReceiveMode = (typeof RECEIVE_MODES)[number];

/** What the driver told of the packets it wants. */
export class ReceiveFilter implements Record<ReceiveMode, boolean> {
  // Until the driver says otherwise everything passes.
  promiscuous = true;
  allMulticast = false;
  allUnicast = false;
  noMulticast = false;
  noUnicast = false;
  noBroadcast = false;
  /** The driver's own address, 6 bytes; undefined when we were not told, and any could be it. */
  mac: Uint8Array | undefined;
  /** Addresses of 6 bytes; undefined when they were too many. */
  unicast: readonly Uint8Array[] | undefined = [];
  multicast: readonly Uint8Array[] | undefined = [];
  /** Whether only tagged packets of some VLANs pass. */
  readonly filtersVlans: boolean;
  /** A bit for each VLAN that passes: bit id % 32 of word id / 32. */
  readonly vlans = new Uint32Array(MAX_VLANS / VLANS_PER_WORD);

  constructor(mac: Uint8Array | undefined, filtersVlans: boolean) {
    this.mac = mac;
    this.filtersVlans = filtersVlans;
  }

  /** Lets packets of a VLAN (0 to 4095) pass, or not. */
  setVlan(id: number, passes: boolean): void {
    const at = id >>> 5;
    const bit = 1 << (id & 31);
    const word = this.vlans[at] as number;
    this.vlans[at] = passes ? word | bit : word & ~bit;
  }
}

const INSTRUCTION_BYTES = 8;
const LOAD_IMMEDIATE = 0x00; // BPF_LD | BPF_IMM
const LOAD_32 = 0x20; // BPF_LD | BPF_W | BPF_ABS: big-endian, from the frame
const LOAD_16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_SCRATCH = 0x60; // BPF_LD | BPF_MEM
const STORE_SCRATCH = 0x02; // BPF_ST
const JUMP = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF_BITS = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const AND = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const SHIFT_RIGHT_BY_X = 0x7c; // BPF_ALU | BPF_RSH | BPF_X
const RETURN = 0x06; // BPF_RET | BPF_K: bytes of the packet to keep
const A_TO_X = 0x07; // BPF_MISC | BPF_TAX
const X_TO_A = 0x87; // BPF_MISC | BPF_TXA

const PASS = 0xffff_ffff;
const DROP = 0;

// SKF_AD_OFF + SKF_AD_VLAN_TAG...: the kernel keeps the outer tag beside the packet, or in it.
const VLAN_TAG = 0xffff_f000 + 44;
const VLAN_TAG_PRESENT = 0xffff_f000 + 48;
const VLAN_PROTOCOL = 0xffff_f000 + 60;
const ETHERTYPE_VLAN = 0x8100;
const ETHERTYPE_AT = 12;
const TAG_AT = 14;
/** The group bit of an address in its first 16 bits. */
const GROUP_BIT = 0x0100;

interface Instruction {
  readonly code: number;
  /** Instructions to skip when the condition holds, and when not: at most 255. */
  readonly jt: number;
  readonly jf: number;
  readonly k: number;
}

function op(code: number, k = 0, jt = 0, jf = 0): Instruction {
  return { code, jt, jf, k };
}

/** An address of a table, and what happens to packets for it. */
interface Entry {
  readonly high16: number;
  readonly low32: number;
  readonly verdict: number;
}

function entry(address: Uint8Array, verdict: number): Entry {
  const data = new DataView(address.buffer, address.byteOffset, ETHERNET_ADDRESS_BYTES);
  return { high16: data.getUint16(0), low32: data.getUint32(2), verdict };
}

function isGroup(address: Uint8Array): boolean {
  return ((address[0] as number) & 1) !== 0;
}

function isBroadcast(address: Uint8Array): boolean {
  return address.every((byte) => byte === 0xff);
}

/** With the first 16 bits of the destination in X: a verdict by its other 32 bits, `otherwise` for what is not listed. */
function table(entries: readonly Entry[], otherwise: number): Instruction[] {
  const groups = new Map<number, Map<number, number>>();
  for (const { low32, high16, verdict } of entries) {
    if (verdict === otherwise) continue;
    const group = groups.get(low32) ?? new Map<number, number>();
    groups.set(low32, group.set(high16, verdict));
  }
  if (groups.size === 0) return [op(RETURN, otherwise)];
  const code = [op(LOAD_32, 2)];
  for (const [low32, group] of groups) {
    const members = [...group].flatMap(([high16, verdict]) => [op(JUMP_IF_EQUAL, high16, 0, 1), op(RETURN, verdict)]);
    const body = [op(X_TO_A), ...members, op(RETURN, otherwise)];
    code.push(op(JUMP_IF_EQUAL, low32, 0, body.length), ...body);
  }
  return [...code, op(RETURN, otherwise)];
}

function unicastVerdicts(filter: ReceiveFilter): { entries: Entry[]; otherwise: number } {
  const { mac, unicast } = filter;
  if (filter.noUnicast) return { entries: [], otherwise: DROP };
  if (filter.allUnicast || unicast === undefined || mac === undefined) return { entries: [], otherwise: PASS };
  const wanted = [mac, ...unicast].filter((address) => !isGroup(address));
  return { entries: wanted.map((address) => entry(address, PASS)), otherwise: DROP };
}

function multicastVerdicts(filter: ReceiveFilter): { entries: Entry[]; otherwise: number } {
  const { multicast } = filter;
  const broadcast = { high16: 0xffff, low32: 0xffff_ffff, verdict: filter.noBroadcast ? DROP : PASS };
  if (filter.noMulticast) return { entries: [broadcast], otherwise: DROP };
  if (filter.allMulticast || multicast === undefined) return { entries: [broadcast], otherwise: PASS };
  const wanted = multicast.filter((address) => isGroup(address) && !isBroadcast(address));
  return { entries: [...wanted.map((address) => entry(address, PASS)), broadcast], otherwise: DROP };
}

/** Neighbouring words of the same value, and the index of the first of them. */
interface Run {
  readonly first: number;
  readonly word: number;
}

/** Stands for a jump to what follows the tree. */
const TEST = op(JUMP);

/** With a word's index in A: loads the word, or drops when no VLAN of it passes. */
function vlanTree(runs: readonly Run[]): Instruction[] {
  const [run] = runs as [Run];
  if (runs.length === 1) return run.word === 0 ? [op(RETURN, DROP)] : [op(LOAD_IMMEDIATE, run.word), TEST];
  const middle = runs.length >> 1;
  const below = vlanTree(runs.slice(0, middle));
  const above = vlanTree(runs.slice(middle));
  return [op(JUMP_IF_AT_LEAST, (runs[middle] as Run).first, 0, 1), op(JUMP, below.length), ...below, ...above];
}

/** Drops packets with a tag of a VLAN that the driver did not ask for; falls through for others. */
function vlanSection({ vlans }: ReceiveFilter): Instruction[] {
  const runs = Array.from(vlans, (word, first) => ({ first, word })).filter(
    ({ first, word }) => word !== vlans[first - 1],
  );
  const tree = vlanTree(runs);
  const test = [op(SHIFT_RIGHT_BY_X), op(JUMP_IF_BITS, 1, 1, 0), op(RETURN, DROP)];
  const choice = [
    op(AND, MAX_VLANS - 1),
    op(STORE_SCRATCH),
    op(AND, VLANS_PER_WORD - 1),
    op(A_TO_X),
    op(LOAD_SCRATCH),
    op(SHIFT_RIGHT, 5),
    ...tree.map((instruction, i) => (instruction === TEST ? op(JUMP, tree.length - 1 - i) : instruction)),
    ...test,
  ];
  return [
    op(LOAD_32, VLAN_TAG_PRESENT),
    op(JUMP_IF_EQUAL, 0, 4, 0),
    op(LOAD_32, VLAN_PROTOCOL),
    op(JUMP_IF_EQUAL, ETHERTYPE_VLAN, 0, 4),
    op(LOAD_32, VLAN_TAG),
    op(JUMP, 4),
    op(LOAD_16, ETHERTYPE_AT),
    op(JUMP_IF_EQUAL, ETHERTYPE_VLAN, 1, 0),
    op(JUMP, choice.length + 1),
    op(LOAD_16, TAG_AT),
    ...choice,
  ];
}

function assemble(code: readonly Instruction[]): Uint8Array {
  const bytes = new Uint8Array(code.length * INSTRUCTION_BYTES);
  const data = new DataView(bytes.buffer);
  code.forEach((instruction, i) => {
    const at = i * INSTRUCTION_BYTES;
    data.setUint16(at, instruction.code, true);
    data.setUint8(at + 2, instruction.jt);
    data.setUint8(at + 3, instruction.jf);
    data.setUint32(at + 4, instruction.k, true);
  });
  return bytes;
}

/** The filter as a program for `setPacketFilter`; undefined when every packet passes. */
export function compileReceiveFilter(filter: ReceiveFilter): Uint8Array | undefined {
  if (filter.promiscuous) return undefined;
  const unicast = unicastVerdicts(filter);
  const multicast = multicastVerdicts(filter);
  const ofUnicast = table(unicast.entries, unicast.otherwise);
  const ofMulticast = table(multicast.entries, multicast.otherwise);
  return assemble([
    ...(filter.filtersVlans ? vlanSection(filter) : []),
    op(LOAD_16, 0),
    op(A_TO_X),
    op(JUMP_IF_BITS, GROUP_BIT, 0, 1),
    op(JUMP, ofUnicast.length),
    ...ofUnicast,
    ...ofMulticast,
  ]);
}
