/** The queues of a machine, those that matter first; the quiet ones are counted and shown on demand. */

import type { DeviceReport, QueueReport } from '../../vmm/queues/queue-report.ts';
import { make, setClass, setHidden, setText, type View, ViewList } from './dom.ts';
import type { Severity } from './model.ts';
import { Sparkline } from './sparkline.ts';
import { compareQueues, describeQueueState, formatCount, formatLatency } from './words.ts';

/** Quiet queues that are shown without being asked for. */
const MAX_QUIET = 4;

interface Row {
  readonly device: DeviceReport;
  readonly queue: QueueReport;
}

const TONES: Readonly<Record<QueueReport['state'], Severity>> = {
  stuck: 'bad',
  waiting: 'slow',
  busy: 'busy',
  empty: 'slow',
  unknown: 'still',
  idle: 'idle',
  off: 'still',
};

const COLUMNS = [
  ['queue', 'name'],
  ['state', 'state'],
  ['in flight', 'inflight'],
  ['a second', 'number'],
  ['latency', 'number'],
  ['last two minutes', 'last'],
] as const;

const isQuiet = ({ queue }: Row): boolean => queue.state === 'idle' || queue.state === 'off';

function cell(className: string, ...children: readonly (Node | string)[]): HTMLTableCellElement {
  const made = make('td', className, ...children);
  // On a phone the rows are no table for the eye; for others they are.
  made.setAttribute('role', 'cell');
  return made;
}

function createRow(): View<Row> {
  const name = cell('name');
  const word = make('span', 'word');
  const fill = make('i');
  const bar = make('span', 'bar', fill);
  bar.setAttribute('aria-hidden', 'true');
  const flight = make('span');
  const rate = cell('number rate');
  const latency = cell('number latency');
  const spark = new Sparkline();
  const element = make(
    'tr',
    '',
    name,
    cell('state', word),
    cell('inflight', make('span', 'flight', bar, flight)),
    rate,
    latency,
    cell('last', spark.element),
  );
  element.setAttribute('role', 'row');
  return {
    element,
    update({ device, queue }) {
      setClass(element, TONES[queue.state]);
      setText(name, `${device.id} ${queue.name}`);
      setText(word, describeQueueState(queue));
      word.title = queue.reason ?? '';
      const isKnown = queue.state !== 'off' && queue.state !== 'unknown';
      setHidden(bar, !isKnown);
      fill.style.width = `${queue.size > 0 ? Math.min(100, (100 * queue.mean_in_flight) / queue.size) : 0}%`;
      const what = queue.role === 'buffers' ? 'offered' : `of ${queue.size}`;
      setText(flight, isKnown ? `${formatCount(queue.mean_in_flight)} ${what}` : '');
      setText(rate, isKnown ? `${queue.exact ? '' : 'about '}${formatCount(queue.rate)}/s` : '');
      setText(latency, queue.latency_us === null ? '' : formatLatency(queue.latency_us));
      spark.add(queue.rate);
    },
  };
}

export class QueueTable {
  readonly element: HTMLElement;
  readonly #table: HTMLTableElement;
  readonly #rows: ViewList<Row>;
  readonly #more: HTMLButtonElement;
  readonly #caption = make('caption');
  #showsAll = false;
  #all: readonly Row[] = [];

  constructor() {
    const heads = COLUMNS.map(([title, className]) => {
      const head = make('th', className, title);
      head.scope = 'col';
      head.setAttribute('role', 'columnheader');
      return head;
    });
    const titles = make('tr', '', ...heads);
    titles.setAttribute('role', 'row');
    const body = make('tbody');
    this.#table = make('table', 'queues', this.#caption, make('thead', '', titles), body);
    this.#table.setAttribute('role', 'table');
    this.#rows = new ViewList(body, ({ device, queue }) => `${device.slot}/${device.id}/${queue.index}`, createRow);
    this.#more = make('button', 'more');
    this.#more.type = 'button';
    this.#more.addEventListener('click', () => {
      this.#showsAll = !this.#showsAll;
      this.#show();
    });
    this.element = make('div', '', this.#table, this.#more);
  }

  update(machine: string, devices: readonly DeviceReport[]): void {
    setText(this.#caption, `Queues of ${machine}`);
    this.#all = devices
      .flatMap((device) => device.queues.map((queue) => ({ device, queue })))
      .sort((a, b) => compareQueues(a.queue, b.queue));
    this.#show();
  }

  #show(): void {
    const loud = this.#all.filter((row) => !isQuiet(row));
    const quiet = this.#all.filter(isQuiet);
    const hidden = this.#showsAll || quiet.length <= MAX_QUIET ? 0 : quiet.length;
    this.#rows.update(hidden === 0 ? [...loud, ...quiet] : loud);
    setHidden(this.#table, this.#all.length === hidden);
    setHidden(this.#more, quiet.length <= MAX_QUIET);
    setText(this.#more, this.#showsAll ? 'hide idle queues' : `show ${quiet.length} idle queues`);
  }
}
