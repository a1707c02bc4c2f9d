import { beforeEach, describe, expect, it } from 'vitest';
import { TinyHost } from '../../../../vmm-client/cli/net-host.ts';
import { summarizeTimes } from '../../../../vmm-client/cli/net-ping.ts';
import { encodeArpReply, encodeArpRequest, parseArp, type Station } from '../../../../vmm-client/packet/arp.ts';
import { type Echo, encodeEchoReply, encodeEchoRequest, parseEcho } from '../../../../vmm-client/packet/ipv4.ts';

const US: Station = { mac: Uint8Array.of(2, 0, 0, 0, 0, 2), ip: 0xc0000202 };
const PEER: Station = { mac: Uint8Array.of(2, 0, 0, 0, 0, 9), ip: 0xc0000201 };
const OTHER: Station = { mac: Uint8Array.of(2, 0, 0, 0, 0, 7), ip: 0xc0000207 };
const DATA = Uint8Array.of(1, 2, 3);

let sent: Uint8Array[];
let stations: Station[];
let replies: Echo[];
let host: TinyHost;

beforeEach(() => {
  sent = [];
  stations = [];
  replies = [];
  host = new TinyHost(US, {
    send: (frame) => sent.push(frame),
    onStation: (station) => stations.push(station),
    onEchoReply: (reply) => replies.push(reply),
  });
});

describe('a host', () => {
  it('tells who asks where it is', () => {
    host.receive(encodeArpRequest(PEER, US.ip));
    expect(sent.map(parseArp)).toEqual([{ operation: 2, sender: US, target: PEER }]);
    expect(stations).toEqual([PEER]);
  });

  it('does not answer for others', () => {
    host.receive(encodeArpRequest(PEER, OTHER.ip));
    host.receive(encodeEchoRequest(PEER, OTHER, 1, 1, DATA));
    host.receive(encodeEchoRequest(PEER, { mac: US.mac, ip: OTHER.ip }, 1, 1, DATA));
    host.receive(encodeEchoRequest(PEER, { mac: OTHER.mac, ip: US.ip }, 1, 1, DATA));
    expect([sent, stations]).toEqual([[], []]);
  });

  it('answers pings with what was sent', () => {
    host.receive(encodeEchoRequest(PEER, US, 77, 5, DATA));
    const [reply] = sent.map(parseEcho);
    expect(reply).toMatchObject({ type: 0, from: US, toIp: PEER.ip, identifier: 77, sequence: 5, data: DATA });
    expect(sent[0]!.subarray(0, 6)).toEqual(PEER.mac);
  });

  it('asks, pings, and says what came back', () => {
    host.ask(PEER.ip);
    host.receive(encodeArpReply(PEER, US));
    host.ping(PEER, 77, 6, DATA);
    const request = parseEcho(sent[1]!);
    host.receive(encodeEchoReply(PEER, request!));
    expect(parseArp(sent[0]!)).toMatchObject({ operation: 1, sender: US, target: { ip: PEER.ip } });
    expect(stations).toEqual([PEER]);
    expect(replies).toMatchObject([{ from: PEER, identifier: 77, sequence: 6, data: DATA }]);
  });

  it('ignores what makes no sense', () => {
    for (const frame of [new Uint8Array(0), new Uint8Array(13), new Uint8Array(2000)]) host.receive(frame);
    expect(sent).toEqual([]);
  });
});

describe('round trip times', () => {
  it.each([
    [[3], { min: 3, average: 3, median: 3, max: 3 }],
    [[4, 1, 10], { min: 1, average: 5, median: 4, max: 10 }],
    [[8, 2, 1, 5], { min: 1, average: 4, median: 3.5, max: 8 }],
  ])('of %j are summarized', (times, summary) => {
    expect(summarizeTimes(times)).toEqual(summary);
  });
});
