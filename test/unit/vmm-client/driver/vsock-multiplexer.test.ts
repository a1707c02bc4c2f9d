import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RING_FAULT } from '../../../../vmm-client/driver/virtqueue.ts';
import type { VsockConnection, VsockHandler } from '../../../../vmm-client/driver/vsock-connection.ts';
import { VsockMultiplexer } from '../../../../vmm-client/driver/vsock-multiplexer.ts';
import { VsockReceiveQueue } from '../../../../vmm-client/driver/vsock-receive-queue.ts';
import { VsockTransmitQueue } from '../../../../vmm-client/driver/vsock-transmit-queue.ts';
import { SharedMemory } from '../../../../vmm-client/frontend/shared-memory.ts';
import { OP, type Packet, SocketDevice } from './vsock-device.ts';

const SIZE = 8;
const PAYLOAD = 1024;
const BUFFER = 4096;
const [STREAM, SEQPACKET] = [1, 2];
const [RCV, SEND] = [1, 2];

let memory: SharedMemory;
let receive: VsockReceiveQueue;
let transmit: VsockTransmitQueue;
let mux: VsockMultiplexer;
let device: SocketDevice;

beforeEach(() => {
  const ring = { packed: false, indirect: false, eventIdx: false, inOrder: false };
  const sizes = { ...ring, size: SIZE, payloadBytes: PAYLOAD };
  memory = new SharedMemory(1024 * 1024);
  receive = new VsockReceiveQueue(memory, { ...sizes, index: 0 });
  transmit = new VsockTransmitQueue(memory, { ...sizes, index: 1 });
  const limits = { bufferBytes: BUFFER, connectTimeoutMs: 10_000, closeTimeoutMs: 10_000 };
  mux = new VsockMultiplexer(memory, receive, transmit, 3, limits);
  device = new SocketDevice(memory, receive.queue, transmit.queue);
});

afterEach(() => {
  mux.abandon(new Error('the test is over'));
  receive.queue.close();
  transmit.queue.close();
  memory.close();
});

/** A handler that writes down what it is told. */
class Recorder implements VsockHandler {
  readonly log: string[] = [];
  onOpen(): void {
    this.log.push('open');
  }
  onReadable(): void {
    this.log.push('readable');
  }
  onWritable(): void {
    this.log.push('writable');
  }
  onClose(_connection: VsockConnection, error: Error | undefined): void {
    this.log.push(error === undefined ? 'close' : `close: ${(error as Error & { code: string }).code}`);
  }
}

interface Opened {
  connection: VsockConnection;
  request: Packet;
  recorder: Recorder;
}

/** A connection that the device has accepted. */
function open(type = STREAM, bufAlloc = 65536): Opened {
  const recorder = new Recorder();
  const connection = mux.connect(2, 5000, type, recorder);
  const [request] = device.sent();
  device.answer(request!, { op: OP.RESPONSE, bufAlloc });
  mux.poll(16);
  expect(connection.state).toBe('open');
  return { connection, request: request!, recorder };
}

const bytes = (length: number, value = 7) => Buffer.alloc(length, value);

/** What the connection has received. */
function readAll(connection: VsockConnection): string {
  const target = Buffer.alloc(connection.readableBytes);
  return target.subarray(0, connection.read(target)).toString();
}

describe('connecting', () => {
  it('asks with its CID, a port of its own and its buffer', () => {
    mux.connect(2, 5000, STREAM, new Recorder());
    const [request] = device.sent();
    expect(request).toMatchObject({ srcCid: 3, dstCid: 2, dstPort: 5000, type: 1, op: 1, bufAlloc: BUFFER, fwdCnt: 0 });
    expect(request!.srcPort).toBeGreaterThan(1023);
  });

  it('gives every connection a port of its own', () => {
    const ports = Array.from({ length: 5 }, () => {
      mux.connect(2, 5000, STREAM, new Recorder());
      return device.sent()[0]!.srcPort;
    });
    expect(new Set(ports).size).toBe(5);
  });

  it('is refused by RST', () => {
    const recorder = new Recorder();
    mux.connect(2, 5000, STREAM, recorder);
    device.answer(device.sent()[0]!, { op: OP.RST });
    mux.poll(16);
    expect([recorder.log, mux.connectionCount]).toEqual([['close: ECONNREFUSED'], 0]);
  });

  it('takes no data before it was accepted', () => {
    const recorder = new Recorder();
    mux.connect(2, 5000, STREAM, recorder);
    device.answer(device.sent()[0]!, { op: OP.RW, payload: bytes(1) });
    mux.poll(16);
    expect([recorder.log, device.ops()]).toEqual([['close: EPROTO'], [OP.RST]]);
  });
});

describe('listening', () => {
  it('accepts with RESPONSE and has the credit of the request', () => {
    const recorder = new Recorder();
    let accepted: VsockConnection | undefined;
    mux.listen(80, STREAM, (connection) => {
      accepted = connection;
      return recorder;
    });
    device.deliver({ srcPort: 1000, dstPort: 80, op: OP.REQUEST, bufAlloc: 10 });
    mux.poll(16);
    expect(device.sent()).toMatchObject([{ srcPort: 80, dstPort: 1000, dstCid: 2, op: OP.RESPONSE, bufAlloc: BUFFER }]);
    expect(accepted!.send(bytes(100), 0, 100)).toBe(10);
  });

  it.each([
    ['a port that nobody listens at', { dstPort: 81, type: STREAM }],
    ['another type', { dstPort: 80, type: SEQPACKET }],
    ['a type that there is not', { dstPort: 80, type: 9 }],
  ])('answers a request for %s with RST', (_what, request) => {
    mux.listen(80, STREAM, () => new Recorder());
    device.deliver({ srcPort: 1000, op: OP.REQUEST, ...request });
    mux.poll(16);
    expect(device.sent()).toMatchObject([{ op: OP.RST, dstPort: 1000, srcPort: request.dstPort, dstCid: 2 }]);
  });

  it('forgets a connection that its acceptor resets', () => {
    const recorder = new Recorder();
    mux.listen(80, STREAM, (connection) => {
      connection.reset();
      return recorder;
    });
    device.deliver({ srcPort: 1000, dstPort: 80, op: OP.REQUEST });
    mux.poll(16);
    expect([device.ops(), mux.connectionCount, recorder.log]).toEqual([[OP.RST], 0, []]);
  });

  it('answers data of a connection that is not there with RST, and RST with nothing', () => {
    device.deliver({ srcPort: 1, dstPort: 2, op: OP.RW, payload: bytes(3) });
    device.deliver({ srcPort: 1, dstPort: 2, op: OP.RST });
    mux.poll(16);
    expect(device.ops()).toEqual([OP.RST]);
  });

  it('drops what is for another CID', () => {
    device.deliver({ dstCid: 4, op: OP.REQUEST });
    device.deliver({ srcCid: 2 ** 32 + 2, op: OP.REQUEST });
    mux.poll(16);
    expect([device.ops(), mux.misdirected]).toEqual([[], 2]);
  });
});

describe('sending', () => {
  it('stops without credit, and goes on with it', () => {
    const { connection, request, recorder } = open(STREAM, 1500);
    expect(connection.send(bytes(4000), 0, 4000)).toBe(1500);
    expect(device.sent().map(({ payload }) => payload.length)).toEqual([1024, 476]);
    device.answer(request, { op: OP.CREDIT_UPDATE, bufAlloc: 1500, fwdCnt: 1000 });
    mux.poll(16);
    expect(recorder.log).toEqual(['open', 'writable']);
    expect(connection.send(bytes(4000), 1500, 4000)).toBe(1000);
  });

  it('stops without slots, and goes on when the device took some', () => {
    const { connection, recorder } = open();
    // A quarter of the queue is for packets without payload.
    expect(connection.send(bytes(10_000), 0, 10_000)).toBe(6 * PAYLOAD);
    connection.shutdown(RCV);
    expect(device.sent(3).map(({ op }) => op)).toEqual([OP.RW, OP.RW, OP.RW]);
    mux.poll(16);
    expect(recorder.log).toEqual(['open', 'writable']);
    expect(connection.send(bytes(10_000), 0, 10_000)).toBe(3 * PAYLOAD);
  });

  it('gives slots in turn to those who wait for them', () => {
    const all = [open(), open(), open()];
    const data = bytes(10_000);
    all[0]!.connection.send(data, 0, 6 * PAYLOAD);
    const turns: number[] = [];
    for (const [i, { connection, recorder }] of all.entries()) {
      recorder.onWritable = () => {
        turns.push(i);
        connection.send(data, 0, 10_000);
      };
      expect(connection.send(data, 0, 10_000)).toBe(0);
    }
    for (let round = 0; round < 6; round++) {
      device.sent(2);
      mux.poll(16);
    }
    expect(turns).toEqual([0, 1, 2, 0, 1, 2]);
  });

  it('ends a connection whose other side has read more than was sent', () => {
    const { connection, request, recorder } = open();
    connection.send(bytes(10), 0, 10);
    device.sent();
    device.answer(request, { op: OP.CREDIT_UPDATE, fwdCnt: 11 });
    mux.poll(16);
    expect([recorder.log.at(-1), device.ops()]).toEqual(['close: EPROTO', [OP.RST]]);
  });

  it('sends nothing into a buffer that became smaller than what is in it', () => {
    const { connection, request } = open();
    connection.send(bytes(100), 0, 100);
    device.sent();
    device.answer(request, { op: OP.CREDIT_UPDATE, bufAlloc: 50, fwdCnt: 10 });
    mux.poll(16);
    expect(connection.send(bytes(1), 0, 1)).toBe(0);
  });

  it('asks for credit that does not come', async () => {
    const { connection } = open(STREAM, 10);
    connection.send(bytes(20), 0, 20);
    expect(device.ops()).toEqual([OP.RW]);
    await expect.poll(() => device.ops(), { timeout: 5000 }).toEqual([OP.CREDIT_REQUEST]);
  });

  it('throws when the other side receives no more', () => {
    const { connection, request, recorder } = open();
    device.answer(request, { op: OP.SHUTDOWN, flags: RCV });
    mux.poll(16);
    expect(recorder.log.at(-1)).toBe('writable');
    expect(() => connection.send(bytes(1), 0, 1)).toThrow('does not take any more data');
  });
});

describe('receiving', () => {
  it('keeps what came until it is read, and tells of it before half of the buffer is used up', () => {
    const { connection, request } = open();
    for (let i = 0; i < 3; i++) device.answer(request, { op: OP.RW, payload: bytes(1000, 0x61 + i) });
    mux.poll(16);
    expect([connection.readableBytes, device.ops()]).toEqual([3000, []]);
    const target = Buffer.alloc(1001);
    connection.read(target);
    expect(target.subarray(999).toString()).toBe('ab');
    expect(device.sent()).toMatchObject([{ op: OP.CREDIT_UPDATE, fwdCnt: 1001, bufAlloc: BUFFER }]);
    expect(readAll(connection)).toBe('b'.repeat(999) + 'c'.repeat(1000));
  });

  it('tells its counters with every packet', () => {
    const { connection, request } = open();
    device.answer(request, { op: OP.RW, payload: Buffer.from('abc') });
    mux.poll(16);
    readAll(connection);
    connection.send(bytes(1), 0, 1);
    expect(device.sent()).toMatchObject([{ op: OP.RW, fwdCnt: 3, bufAlloc: BUFFER }]);
  });

  it('answers CREDIT_REQUEST', () => {
    const { request } = open();
    device.answer(request, { op: OP.CREDIT_REQUEST });
    mux.poll(16);
    expect(device.ops()).toEqual([OP.CREDIT_UPDATE]);
  });

  it('ends a connection with more data than credit', () => {
    const { request, recorder } = open();
    for (let i = 0; i < 4; i++) device.answer(request, { op: OP.RW, payload: bytes(PAYLOAD) });
    device.answer(request, { op: OP.RW, payload: bytes(1) });
    mux.poll(16);
    expect([recorder.log.at(-1), device.ops()]).toEqual(['close: EPROTO', [OP.RST]]);
  });

  it('has messages as they were sent', () => {
    const { connection, request } = open(SEQPACKET);
    device.answer(request, { op: OP.RW, payload: Buffer.from('one ') });
    device.answer(request, { op: OP.RW, payload: Buffer.from('message'), flags: 1 });
    device.answer(request, { op: OP.RW, flags: 3 });
    device.answer(request, { op: OP.RW, payload: Buffer.from('part') });
    mux.poll(16);
    expect(connection.readMessage()).toEqual({ bytes: Buffer.from('one message'), flags: 1 });
    expect(connection.readMessage()).toEqual({ bytes: Buffer.alloc(0), flags: 3 });
    expect(connection.readMessage()).toBe(undefined);
  });

  it('marks the last packet of a message', () => {
    const { connection } = open(SEQPACKET);
    connection.send(bytes(1500), 0, 1500, 3);
    connection.sendInPlace(0, 1);
    expect(device.sent().map(({ flags, payload, type }) => [flags, payload.length, type])).toEqual([
      [0, 1024, 2],
      [3, 476, 2],
      [1, 0, 2],
    ]);
  });
});

describe('the end', () => {
  it('is SHUTDOWN both ways, then RST of the other side', () => {
    const { connection, request, recorder } = open();
    connection.close();
    expect(device.sent()).toMatchObject([{ op: OP.SHUTDOWN, flags: RCV | SEND }]);
    device.answer(request, { op: OP.RST });
    mux.poll(16);
    expect([recorder.log.at(-1), connection.state, mux.connectionCount]).toEqual(['close', 'closed', 0]);
  });

  it('is half of it when one side has sent all', () => {
    const { connection, request, recorder } = open();
    connection.shutdown(SEND);
    expect(device.sent()).toMatchObject([{ op: OP.SHUTDOWN, flags: SEND }]);
    device.answer(request, { op: OP.RW, payload: Buffer.from('still here') });
    device.answer(request, { op: OP.SHUTDOWN, flags: SEND });
    mux.poll(16);
    expect([readAll(connection), connection.hasEnded, connection.state]).toEqual(['still here', true, 'open']);
    expect(recorder.log).toEqual(['open', 'readable', 'readable']);
  });

  it('comes when all was read that the other side sent before its end', () => {
    const { connection, request, recorder } = open();
    device.answer(request, { op: OP.RW, payload: Buffer.from('last') });
    device.answer(request, { op: OP.SHUTDOWN, flags: RCV | SEND });
    mux.poll(16);
    expect([recorder.log.includes('close'), device.ops()]).toEqual([false, []]);
    expect(readAll(connection)).toBe('last');
    expect([recorder.log.at(-1), device.ops()]).toEqual(['close', [OP.RST]]);
  });

  it('is an error when the other side resets without a word', () => {
    const { connection, request, recorder } = open();
    device.answer(request, { op: OP.RW, payload: Buffer.from('kept') });
    device.answer(request, { op: OP.RST, bufAlloc: 0, fwdCnt: 0 });
    mux.poll(16);
    expect([recorder.log.at(-1), readAll(connection)]).toEqual(['close: ECONNRESET', 'kept']);
  });

  it('comes for what is no operation of a connection', () => {
    const { request, recorder } = open();
    device.answer(request, { op: 99 });
    mux.poll(16);
    expect([recorder.log.at(-1), device.ops()]).toEqual(['close: EPROTO', [OP.RST]]);
  });
});

describe('a device that takes nothing', () => {
  it('has the answers kept, and in the end nothing more received', () => {
    for (let port = 0; port < 300; port++) {
      device.deliver({ srcPort: port, dstPort: 2, op: OP.RW, payload: bytes(1) });
      mux.poll(16);
      if (device.rx.available === 0) break;
    }
    // Two are in slots, 256 wait; every buffer is the device's again but those that were not received.
    expect([transmit.outstanding, device.rx.next]).toEqual([2, 2 + 256 + SIZE]);
    let answered = 0;
    for (let round = 0; round < 300; round++) {
      answered += device.sent().length;
      mux.poll(16);
    }
    expect(answered).toBe(2 + 256 + SIZE);
  });

  it('that comes back gets resets in the place of what the one before did not take', () => {
    const { connection } = open();
    connection.send(bytes(10), 0, 10);
    mux.abandon(new Error('gone'));
    for (const { queue } of [receive, transmit]) queue.vring.resume(false);
    const next = new SocketDevice(memory, receive.queue, transmit.queue);
    expect(next.sent()).toMatchObject([{ op: OP.RST, payload: Buffer.alloc(0) }]);
    expect(next.rx.available).toBe(SIZE);
  });
});

describe('a device that breaks a rule', () => {
  it.each([
    ['a packet shorter than its header', 43, 'queue 0: the device says it wrote 43 bytes: a packet here has from 44'],
    ['a packet longer than its buffer', 44 + PAYLOAD + 1, 'queue 0: the device says it wrote 1069 bytes'],
  ])('fails with one sentence for %s', (_what, used, sentence) => {
    const { head } = device.rx.chain();
    device.rx.use(head, used);
    expect(mux.poll(16)).toBe(RING_FAULT);
    expect(mux.fault).toContain(sentence);
  });

  it('fails for a length that is not there', () => {
    const { head, bytes: buffer } = device.rx.chain();
    buffer.writeUInt32LE(5, 24);
    device.rx.use(head, 44 + 4);
    expect([mux.poll(16), mux.fault]).toEqual([
      RING_FAULT,
      'queue 0: a packet says it has 5 bytes of payload, 4 are there',
    ]);
  });
});
