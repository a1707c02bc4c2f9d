import { once } from 'node:events';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { describe, expect, it } from 'vitest';
import { EventStream, encodeEvent } from '../../../../vmm-client/ui/event-stream.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';

describe('A stream of events', () => {
  const cleanup = cleanupAfterEach();

  /** The two ends of one answer: the response, and a socket that has asked for it and reads nothing yet. */
  const open = async () => {
    const server: Server = createServer();
    cleanup.add(() => {
      server.closeAllConnections();
      server.close();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
    cleanup.add(() => socket.destroy());
    socket.on('error', () => undefined);
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    const [, response] = (await once(server, 'request')) as [unknown, ServerResponse];
    return { socket, response };
  };

  it('has one line of data an event', () => {
    expect(encodeEvent('snapshot', { text: 'a\nb\r\n' })).toBe('event: snapshot\ndata: {"text":"a\\nb\\r\\n"}\n\n');
  });

  it('begins with its head, and ends when it is closed', async () => {
    const { socket, response } = await open();
    const stream = new EventStream(response, { 'X-Test': '1' });
    let closed = 0;
    stream.onClose = () => {
      closed += 1;
    };
    stream.send('a', 1);
    stream.close();
    stream.close();
    stream.send('b', 2);
    let text = '';
    for await (const chunk of socket) {
      text += String(chunk);
      if (text.includes('0\r\n\r\n')) break;
    }
    expect(text).toContain('Content-Type: text/event-stream; charset=utf-8');
    expect(text).toContain('X-Test: 1');
    expect(text).toContain('event: a\ndata: 1\n\n');
    expect(text).not.toContain('event: b');
    expect(closed).toBe(1);
  });

  it('is cut off when its reader does not read, with little memory spent on it', async () => {
    const { socket, response } = await open();
    socket.pause();
    const stream = new EventStream(response, {});
    const ended = new Promise<void>((resolve) => {
      stream.onClose = resolve;
    });
    let most = 0;
    const filler = 'x'.repeat(64 * 1024);
    const timer = setInterval(() => {
      stream.send('a', filler);
      most = Math.max(most, stream.waitingBytes);
    }, 1);
    cleanup.add(() => clearInterval(timer));
    await ended;
    expect(most).toBeLessThanOrEqual(1024 * 1024 + 2 * filler.length);
    expect(response.destroyed).toBe(true);
  });

  it('may have an event that is larger than what may wait', async () => {
    const { socket, response } = await open();
    const stream = new EventStream(response, {});
    const filler = 'x'.repeat(16 * 1024 * 1024);
    stream.send('a', filler);
    let got = 0;
    for await (const chunk of socket) {
      got += (chunk as Buffer).length;
      if (got > filler.length) break;
    }
    expect(got).toBeGreaterThan(filler.length);
  });

  it('hears of a reader that hangs up', async () => {
    const { socket, response } = await open();
    const stream = new EventStream(response, {});
    const ended = new Promise<void>((resolve) => {
      stream.onClose = resolve;
    });
    socket.destroy();
    await ended;
  });
});
