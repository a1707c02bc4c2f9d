/**
 * A thread that notices the end of a front end while the threads that serve it wait for a page which only that front end
 * could bring: they would wait for ever. It lets them fail instead. It touches no guest memory, so it never waits itself.
 */

import { parentPort, workerData } from 'node:worker_threads';
import { EPOLLERR, EPOLLHUP, EPOLLRDHUP, Epoll } from '../../protocol/sys/epoll.ts';
import { OwnedFd } from '../../protocol/sys/owned-fd.ts';
import { watchReadable } from '../../protocol/sys/readiness.ts';
import { LateExtents } from './late-extents.ts';

/** What the thread is started with. The descriptors become its own. */
export interface GuardianData {
  readonly socket: number;
  readonly userFault: number;
  /** A file of createEmptyFile, made beforehand: when it is needed there may be no descriptor left. */
  readonly empty: number;
  readonly extents: SharedArrayBuffer;
}

if (parentPort === null) throw new Error('this module is a thread');
const port = parentPort;
const data = workerData as GuardianData;
const socket = new OwnedFd(data.socket);
const userFault = new OwnedFd(data.userFault);
const extents = new LateExtents(data.extents);
const empty = new OwnedFd(data.empty);
const epoll = new Epoll();
const ends = EPOLLHUP | EPOLLRDHUP | EPOLLERR;
epoll.add(socket.fd, {
  onEvents(events) {
    if ((events & ends) !== 0) extents.abandon(userFault.fd, empty.fd);
  },
});
const watch = watchReadable(epoll.fd, () => epoll.dispatch());
port.once('message', () => {
  watch.close();
  for (const fd of [epoll, socket, userFault, empty]) fd.close();
  port.close();
});
port.postMessage('ready');
