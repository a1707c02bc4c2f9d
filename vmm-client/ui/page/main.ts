/** The page: takes snapshots from the server while somebody looks, and brings the machines up to date. */

import { find, setHidden, setText, ViewList } from './dom.ts';
import { createMachineCard } from './machine-card.ts';
import type { MachineView, Snapshot } from './model.ts';
import { compareMachines } from './words.ts';

/** Snapshots come every second; without one for so long what is shown is old. */
const STALE_MS = 5000;

const offline = find('offline', HTMLElement);
const summary = find('summary', HTMLElement);
let control = false;
let events: EventSource | undefined;
let stale: number | undefined;

const machines = new ViewList<MachineView>(
  find('machines', HTMLElement),
  ({ key }) => key,
  () => createMachineCard(() => control),
);

/** `3 machines: 1 needs attention, 1 busy`. */
function summarize(all: readonly MachineView[]): string {
  const count = (what: string, test: (machine: MachineView) => boolean): string[] => {
    const number = all.filter(test).length;
    return number === 0 ? [] : [`${number} ${what}`];
  };
  const parts = [
    ...count('in trouble', ({ severity }) => severity === 'bad'),
    ...count('waiting', ({ severity }) => severity === 'slow'),
    ...count('out of reach', ({ severity }) => severity === 'away'),
    ...count('busy', ({ severity }) => severity === 'busy'),
    ...count('idle', ({ severity }) => severity === 'idle'),
    ...count('standing still', ({ severity }) => severity === 'still'),
  ];
  const total = all.length === 1 ? '1 machine' : `${all.length} machines`;
  return parts.length === 0 ? total : `${total}: ${parts.join(', ')}`;
}

function show(snapshot: Snapshot): void {
  control = snapshot.control;
  machines.update([...snapshot.machines].sort(compareMachines));
  const text = summarize(snapshot.machines);
  setText(summary, text);
  document.title = snapshot.machines.some(({ severity }) => severity === 'bad') ? `(!) ${text} - ringside` : 'ringside';
  setHidden(find('logout', HTMLElement), !snapshot.login);
  setHidden(offline, true);
  expectSnapshot();
}

function expectSnapshot(): void {
  clearTimeout(stale);
  stale = setTimeout(() => setHidden(offline, false), STALE_MS);
}

/** A session may have ended, which an EventSource does not tell. */
async function checkLogin(): Promise<void> {
  try {
    const response = await fetch('/page/main.js', { method: 'GET', cache: 'no-store' });
    if (response.status === 401) location.assign('/login');
  } catch (error) {
    // The server is away: the note says so, and the browser comes back by itself.
    if (!(error instanceof TypeError)) throw error;
  }
}

function listen(): void {
  events?.close();
  events = new EventSource('/api/events');
  events.addEventListener('snapshot', (event) => show(JSON.parse(event.data) as Snapshot));
  events.addEventListener('error', () => {
    const isOver = events?.readyState === EventSource.CLOSED;
    void checkLogin();
    // An answer that is no stream ends an EventSource for good.
    if (isOver) setTimeout(listen, STALE_MS);
  });
  expectSnapshot();
}

// A page that nobody sees costs nothing.
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') {
    listen();
    return;
  }
  events?.close();
  clearTimeout(stale);
});
listen();
