/** `ringside info`: asks a back end everything that can be asked without giving it memory, and shows it. */

import { PeerError } from '../../protocol/vhost-user/errors.ts';
import { PROTOCOL_FEATURE_NAMES, VHOST_USER_PROTOCOL_F_CONFIG } from '../../protocol/vhost-user/features.ts';
import { MAX_CONFIG_BYTES } from '../../protocol/vhost-user/payloads.ts';
import { type BlkConfig, decodeBlkConfig } from '../driver/blk-config.ts';
import { decodeNetConfig, type NetConfig } from '../driver/net-config.ts';
import { VhostUserFrontend } from '../frontend/frontend.ts';
import { type DeviceType, featureNames, guessDevice, namesOf } from './feature-names.ts';
import { formatMac } from './net-addresses.ts';
import { formatCount, formatSize } from './quantity.ts';

export interface InfoOptions {
  readonly type: DeviceType | 'auto';
  readonly timeoutMs: number;
}

export interface BackendInfo {
  readonly socket: string;
  readonly device: DeviceType;
  readonly deviceIsGuess: boolean;
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queues: number | undefined;
  readonly memorySlots: number;
  readonly config: Uint8Array;
}

/** @throws SysError, PeerError, ProtocolError - nobody there, or not a vhost-user back end */
export async function queryBackend(socket: string, options: InfoOptions): Promise<BackendInfo> {
  const frontend = await VhostUserFrontend.connect(socket, { timeoutMs: options.timeoutMs });
  try {
    const { features, offeredProtocolFeatures, queueCount, maxMemorySlots } = frontend.capabilities;
    const config = frontend.hasProtocolFeature(VHOST_USER_PROTOCOL_F_CONFIG)
      ? await readWholeConfig(frontend)
      : new Uint8Array();
    return {
      socket,
      device: options.type === 'auto' ? guessDevice(features, config.length) : options.type,
      deviceIsGuess: options.type === 'auto',
      features,
      protocolFeatures: offeredProtocolFeatures,
      queues: queueCount,
      memorySlots: maxMemorySlots,
      config,
    };
  } finally {
    frontend.close();
  }
}

/** The longest prefix of the configuration space that the back end is willing to read; its length is not told. */
async function readWholeConfig(frontend: VhostUserFrontend): Promise<Uint8Array> {
  let best: Uint8Array = new Uint8Array();
  let tooLong = MAX_CONFIG_BYTES + 1;
  for (let length = MAX_CONFIG_BYTES; length > best.length; length = Math.floor((best.length + tooLong) / 2)) {
    try {
      best = await frontend.readConfig(0, length);
    } catch (error) {
      if (!(error instanceof PeerError) || !frontend.isConnected) throw error;
      tooLong = length;
    }
  }
  return best;
}

const hex = (mask: bigint) => `0x${mask.toString(16)}`;

/** The fields of a decoded configuration space, in the order of the standard; undefined where there is none. */
function describeConfig(info: BackendInfo): [string, string][] {
  const { config } = info;
  const view = new DataView(config.buffer, config.byteOffset, config.byteLength);
  if (info.device === 'blk' && config.length >= 8) return describeBlk(decodeBlkConfig(config, info.features));
  if (info.device === 'net' && config.length > 0) return describeNet(decodeNetConfig(config, info.features));
  if (info.device === 'vsock' && config.length >= 8) return [['guest cid', String(view.getBigUint64(0, true))]];
  return [];
}

function describeNet(config: NetConfig): [string, string][] {
  const { mac, linkUp, maxPairs, mtu, speedMbps, fullDuplex } = config;
  const rows: [string, string][] = [];
  if (mac !== undefined) rows.push(['mac', formatMac(mac)]);
  if (linkUp !== undefined) rows.push(['status', linkUp ? 'link up' : 'link down']);
  if (maxPairs !== undefined) rows.push(['queue pairs', `up to ${maxPairs}`]);
  if (mtu !== undefined) rows.push(['mtu', `${mtu} bytes`]);
  if (speedMbps !== undefined) rows.push(['speed', `${formatCount(speedMbps)} Mbit/s`]);
  if (fullDuplex !== undefined) rows.push(['duplex', fullDuplex ? 'full' : 'half']);
  return rows;
}

function describeBlk(config: BlkConfig): [string, string][] {
  const rows: [string, string][] = [
    [
      'capacity',
      `${formatSize(config.capacityBytes)} (${formatCount(config.capacityBytes / 512)} sectors of 512 bytes)`,
    ],
  ];
  if (config.sizeMax) rows.push(['segment size', `up to ${formatSize(config.sizeMax)}`]);
  if (config.segMax) rows.push(['segments', `up to ${config.segMax} per request`]);
  rows.push(['block size', `${config.blockSize} bytes`]);
  if (config.topology !== undefined) {
    const { physicalBlockBytes, minIoBlocks, optIoBlocks } = config.topology;
    rows.push(['physical block', `${physicalBlockBytes} bytes`]);
    rows.push(['I/O size', `at least ${minIoBlocks}, best ${optIoBlocks} blocks`]);
  }
  if (config.writeback !== undefined) rows.push(['cache', config.writeback ? 'write-back' : 'write-through']);
  if (config.numQueues !== undefined) rows.push(['queues', String(config.numQueues)]);
  const range = (limits: { maxSectors: number; maxSegments: number }) =>
    `up to ${formatSize(limits.maxSectors * 512)} a range, ${limits.maxSegments} a request`;
  if (config.discard !== undefined) rows.push(['discard', range(config.discard)]);
  if (config.writeZeroes !== undefined) {
    rows.push(['write zeroes', `${range(config.writeZeroes)}${config.writeZeroesMayUnmap ? ', may unmap' : ''}`]);
  }
  return rows;
}

/** Text for people, two columns. */
export function renderInfo(info: BackendInfo): string {
  const rows: [string, string][] = [
    ['Socket', info.socket],
    ['Device', info.deviceIsGuess ? `${info.device} (guessed; --type says otherwise)` : info.device],
    ['Queues', info.queues === undefined ? 'not told (no MQ)' : String(info.queues)],
    ['Memory slots', String(info.memorySlots)],
    ['Features', hex(info.features)],
    ...wrap(featureNames(info.features, info.device)),
    ['Protocol features', hex(info.protocolFeatures)],
    ...wrap(namesOf(info.protocolFeatures, PROTOCOL_FEATURE_NAMES)),
    ['Configuration', info.config.length === 0 ? 'none' : `${info.config.length} bytes`],
  ];
  const fields = describeConfig(info);
  for (const [name, value] of fields) rows.push([`  ${name}`, value]);
  if (fields.length === 0 && info.config.length > 0) {
    const bytes = Buffer.from(info.config).toString('hex');
    for (let at = 0; at < bytes.length; at += 64) rows.push(['', bytes.slice(at, at + 64)]);
  }
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`.trimEnd()).join('\n');
}

/** Names in lines of at most 80 characters, as rows without a name. */
function wrap(names: readonly string[]): [string, string][] {
  const lines: string[] = [];
  for (const name of names) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + name.length < 80) lines[lines.length - 1] = `${last} ${name}`;
    else lines.push(name);
  }
  return lines.map((line) => ['', line]);
}

/** The same for programs. Masks are hexadecimal strings: JSON numbers end at 2^53. */
export function infoToJson(info: BackendInfo): Record<string, unknown> {
  return {
    socket: info.socket,
    device: info.device,
    deviceIsGuess: info.deviceIsGuess,
    queues: info.queues ?? null,
    memorySlots: info.memorySlots,
    features: { mask: hex(info.features), names: featureNames(info.features, info.device) },
    protocolFeatures: {
      mask: hex(info.protocolFeatures),
      names: namesOf(info.protocolFeatures, PROTOCOL_FEATURE_NAMES),
    },
    config: {
      bytes: Buffer.from(info.config).toString('hex'),
      ...configToJson(info),
    },
  };
}

function configToJson({ device, config, features }: BackendInfo): Record<string, unknown> {
  const view = new DataView(config.buffer, config.byteOffset, config.byteLength);
  if (device === 'blk' && config.length >= 8) return { blk: decodeBlkConfig(config, features) };
  if (device === 'net' && config.length > 0) {
    const { mac, ...rest } = decodeNetConfig(config, features);
    return { net: { ...(mac !== undefined && { mac: formatMac(mac) }), ...rest } };
  }
  if (device === 'vsock' && config.length >= 8) return { vsock: { guestCid: String(view.getBigUint64(0, true)) } };
  return { [device]: {} };
}
