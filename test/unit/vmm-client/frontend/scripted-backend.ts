/** A back end that writes down what it is told and answers by script: for tests of the front end's messages. */

import { SysError } from '../../../../protocol/sys/errors.ts';
import { createSealedMemfd, type OwnedFd } from '../../../../protocol/sys/owned-fd.ts';
import { type Watch, watchReadable } from '../../../../protocol/sys/readiness.ts';
import { UnixListener } from '../../../../protocol/sys/unix-socket.ts';
import { closeAll, Endpoint, type IncomingMessage } from '../../../../protocol/vhost-user/endpoint.ts';
import { FRONTEND, FRONTEND_BY_ID } from '../../../../protocol/vhost-user/messages.ts';
import { dump } from '../../../support/hex.ts';

export interface Script {
  features: bigint;
  protocolFeatures: bigint;
  /** Messages that are not answered, answered with failure, or answered as another message. */
  ignore: string[];
  refuse: string[];
  mislabel: string[];
  /** Messages at which the connection is closed. */
  dieAt: string[];
  /** Messages after whose answer the connection is closed. */
  dieAfter: string[];
  /** Answer to GET_QUEUE_NUM. */
  queueCount: bigint;
  /** The configuration space; what is not in it cannot be read. Undefined: any request is answered with itself. */
  config: Uint8Array | undefined;
  /** Answers before all else; undefined where it has none. Descriptors of the message are its own to take. */
  answer: (name: string, payload: Uint8Array, fds: OwnedFd[]) => Answer | undefined;
}

export interface Answer {
  payload: Uint8Array;
  fds?: OwnedFd[];
}

const INFLIGHT_BYTES = 4096;

export class ScriptedBackend {
  /** Names of the messages of all connections, in order. */
  readonly log: string[] = [];
  /** Payloads by message name, the last of each. */
  readonly last = new Map<string, unknown>();
  /** The messages as they were on the wire: name, flags and payload in hexadecimal. */
  readonly wire: string[] = [];
  /** The request channel of the last connection. */
  channel: OwnedFd | undefined;
  connections = 0;
  readonly #script: Script;
  readonly #listener: UnixListener;
  readonly #watch: Watch;
  #endpoint: Endpoint | undefined;

  constructor(path: string, script: Partial<Script> = {}) {
    const friendly = {
      ignore: [],
      refuse: [],
      mislabel: [],
      dieAt: [],
      dieAfter: [],
      queueCount: 4n,
      config: undefined,
      answer: () => undefined,
    };
    this.#script = { features: 0n, protocolFeatures: 0n, ...friendly, ...script };
    this.#listener = UnixListener.listen(path);
    this.#watch = watchReadable(this.#listener.fd, () => {
      const stream = this.#listener.accept();
      if (stream === undefined) return;
      this.connections += 1;
      this.#endpoint = new Endpoint(stream);
      void this.#serve(this.#endpoint);
    });
  }

  async #serve(endpoint: Endpoint): Promise<void> {
    try {
      for (let message = await endpoint.next(); message !== undefined; message = await endpoint.next()) {
        this.#handle(endpoint, message);
      }
    } catch (error) {
      // The front end closed before it had read everything.
      if (!(error instanceof SysError)) throw error;
    }
    endpoint.close();
  }

  #handle(endpoint: Endpoint, message: IncomingMessage): void {
    const type = FRONTEND_BY_ID.get(message.id);
    if (type === undefined) throw new Error(`message ${message.id}`);
    const { name } = type;
    this.log.push(message.fds.length === 0 ? name : `${name}+${message.fds.length}`);
    this.last.set(name, type.request.decode(message.payload));
    this.wire.push(`${name} ${message.needsReply ? 9 : 1} ${dump(message.payload)}`.trimEnd());
    const own = this.#script.answer(name, message.payload, message.fds);
    if (name === 'SET_BACKEND_REQ_FD') {
      this.channel?.close();
      this.channel = message.fds[0];
    } else {
      closeAll(message.fds);
    }
    if (this.#script.ignore.includes(name)) return;
    if (this.#script.dieAt.includes(name)) {
      this.die();
      return;
    }
    const id = this.#script.mislabel.includes(name) ? message.id + 1 : message.id;
    const answer = own ?? this.#answer(name, message.payload);
    if (answer !== undefined) {
      const { payload, fds = [] } = answer;
      endpoint.sendReply(id, payload, fds);
      closeAll(fds);
    } else if (message.needsReply) {
      endpoint.sendReply(id, u64(this.#script.refuse.includes(name) ? 1n : 0n));
    }
    if (this.#script.dieAfter.includes(name)) this.die();
  }

  #answer(name: string, request: Uint8Array): Answer | undefined {
    const plain = (payload: Uint8Array) => ({ payload });
    if (name === 'GET_FEATURES') return plain(u64(this.#script.features));
    if (name === 'GET_PROTOCOL_FEATURES') return plain(u64(this.#script.protocolFeatures));
    if (name === 'GET_QUEUE_NUM') return plain(u64(this.#script.queueCount));
    if (name === 'GET_MAX_MEM_SLOTS') return plain(u64(12n));
    if (name === 'GET_CONFIG')
      return plain(this.#script.refuse.includes(name) ? new Uint8Array() : this.#config(request));
    if (name === 'GET_VRING_BASE')
      return plain(FRONTEND.GET_VRING_BASE.request.encode({ index: request[0]!, num: 77 }));
    if (name !== 'GET_INFLIGHT_FD') return undefined;
    const area = { ...FRONTEND.GET_INFLIGHT_FD.request.decode(request), mmapSize: INFLIGHT_BYTES };
    return {
      payload: FRONTEND.GET_INFLIGHT_FD.request.encode(area),
      fds: [createSealedMemfd('inflight', INFLIGHT_BYTES)],
    };
  }

  #config(request: Uint8Array): Uint8Array {
    const { config } = this.#script;
    if (config === undefined) return request;
    const { offset, size, flags } = FRONTEND.GET_CONFIG.request.decode(request);
    if (size > config.length - offset) return new Uint8Array();
    const data = config.subarray(offset, offset + size);
    return FRONTEND.GET_CONFIG.request.encode({ offset, size, flags, data });
  }

  /** Changes the script from here on. */
  rewrite(script: Partial<Script>): void {
    Object.assign(this.#script, script);
  }

  /** Closes the connection as a process that dies does, but goes on listening. */
  die(): void {
    this.#endpoint?.close();
    this.channel?.close();
    this.channel = undefined;
  }

  close(): void {
    this.die();
    this.#watch.close();
    this.#listener.close();
  }
}

export function u64(value: bigint): Uint8Array {
  return new Uint8Array(new BigUint64Array([value]).buffer);
}
