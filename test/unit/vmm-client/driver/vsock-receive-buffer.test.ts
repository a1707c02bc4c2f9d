import { beforeEach, describe, expect, it } from 'vitest';
import { VsockReceiveBuffer } from '../../../../vmm-client/driver/vsock-receive-buffer.ts';

let buffer: VsockReceiveBuffer;

beforeEach(() => {
  buffer = new VsockReceiveBuffer(8);
});

const push = (text: string) => buffer.push(Buffer.from(`..${text}`), 2, text.length);

function take(length: number): string {
  const target = Buffer.alloc(length);
  return target.subarray(0, buffer.take(target)).toString();
}

describe('what has come and nobody has read', () => {
  it('is read in its order, around the end of the memory', () => {
    expect([push('abcdef'), take(4), push('ghijkl'), buffer.length]).toEqual([true, 'abcd', true, 8]);
    expect([take(3), take(100), take(1)]).toEqual(['efg', 'hijkl', '']);
  });

  it('is no more than there is room for', () => {
    expect([push('12345678'), push('9'), take(1), push('9'), take(8)]).toEqual([true, false, '1', true, '23456789']);
  });

  it('is empty before the first byte', () => {
    expect([take(3), buffer.length, buffer.messageLength, buffer.takeMessage()]).toEqual(['', 0, undefined, undefined]);
  });

  it('is messages where their ends are told', () => {
    push('ab');
    buffer.endMessage(1);
    push('c');
    expect(buffer.messageLength).toBe(2);
    push('d');
    buffer.endMessage(3);
    buffer.endMessage(1);
    const messages = [buffer.takeMessage(), buffer.takeMessage(), buffer.takeMessage(), buffer.takeMessage()];
    expect(messages.map((message) => message && [message.bytes.toString(), message.flags])).toEqual([
      ['ab', 1],
      ['cd', 3],
      ['', 1],
      undefined,
    ]);
  });

  it('has an end of empty messages, which need no credit', () => {
    let count = 0;
    while (count < 10_000 && buffer.endMessage(1)) count += 1;
    expect(count).toBe(4096);
  });
});
