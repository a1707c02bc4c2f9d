/** One machine: what matters most of it in a line, then its operation, vCPUs, devices, queues and console. */

import type { DeviceReport } from '../../vmm/queues/queue-report.ts';
import { confirmAction } from './confirm.ts';
import { ConsolePanel } from './console-panel.ts';
import { make, setClass, setHidden, setText, type View, ViewList } from './dom.ts';
import type { Action, MachineView, OperationView, Severity, VcpuView } from './model.ts';
import { announce } from './notice.ts';
import { QueueTable } from './queue-table.ts';
import { post } from './requests.ts';
import { formatBytes, formatCount } from './words.ts';

const VERBS: Readonly<Record<Action, string>> = {
  boot: 'Boot',
  pause: 'Pause',
  resume: 'Resume',
  'power-button': 'Power button',
  reboot: 'Reboot',
  shutdown: 'Shut down',
};

/** What a guest does not hear of beforehand. */
const QUESTIONS: Partial<Record<Action, (name: string) => string>> = {
  reboot: (name) => `Reboot ${name}? Its guest is not asked: what it has not written is lost.`,
  shutdown: (name) => `Shut ${name} down? Its guest is not asked: what it has not written is lost.`,
};

const HALF = 0.5;
const LITTLE = 0.02;

function describeLoad(load: number | null, state: string): readonly [Severity, string] {
  if (state === 'Paused') return ['still', 'paused'];
  if (load === null) return ['still', ''];
  if (load < LITTLE) return ['idle', 'halted'];
  return [load >= HALF ? 'busy' : 'idle', `busy ${Math.round(load * 100)} %`];
}

function createVcpu(state: () => string): View<VcpuView> {
  const fill = make('i');
  const bar = make('span', 'bar', fill);
  bar.setAttribute('aria-hidden', 'true');
  const word = make('span', 'word');
  const exits = make('span', 'small');
  const name = make('span');
  const element = make('li', '', name, bar, word, exits);
  return {
    element,
    update(vcpu) {
      const [tone, text] = describeLoad(vcpu.load, state());
      setClass(element, tone);
      setText(name, `vCPU ${vcpu.index}`);
      fill.style.width = `${Math.round((vcpu.load ?? 0) * 100)}%`;
      setText(word, text);
      setHidden(word, text === '');
      const reasons = vcpu.exits.map(({ reason, rate }) => `${formatCount(rate)} ${reason}`);
      setText(exits, reasons.length === 0 ? '' : `exits a second: ${reasons.join(', ')}`);
    },
  };
}

function describeDevice({ status, backend, kind }: DeviceReport): readonly [Severity, string] {
  if (backend === 'away') return ['bad', 'back end away'];
  if (status === 'needs reset' || status === 'failed') return ['bad', status];
  if (status === 'down' || status === 'driver') return ['still', 'no driver'];
  return ['idle', backend === 'connected' ? `${kind}, connected` : kind];
}

function createDevice(): View<DeviceReport> {
  const name = make('span');
  const word = make('span', 'word');
  const element = make('li', '', name, word);
  return {
    element,
    update(device) {
      const [tone, text] = describeDevice(device);
      setClass(element, tone);
      setText(name, device.id);
      setText(word, text);
    },
  };
}

function updateOperation(
  element: HTMLElement,
  label: HTMLElement,
  bar: HTMLProgressElement,
  now: OperationView | null,
) {
  setHidden(element, now === null);
  if (now === null) return;
  const { name, phase, bytesDone, bytesTotal } = now;
  const share = bytesTotal > 0 ? `, ${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}` : '';
  setText(label, `${name}: ${phase}${share}`);
  if (bytesTotal > 0) bar.value = Math.min(1, bytesDone / bytesTotal);
  else bar.removeAttribute('value');
}

/** A card for one machine. `control`: whether keys may go to its console. */
export function createMachineCard(control: () => boolean): View<MachineView> {
  let latest: MachineView | undefined;
  let panel: ConsolePanel | undefined;
  const name = make('h2');
  const headline = make('p', 'headline');
  const buttons = make('div', 'buttons');
  const consoleButton = make('button', 'console-button', 'Console');
  consoleButton.type = 'button';
  consoleButton.setAttribute('aria-expanded', 'false');
  buttons.append(consoleButton);
  const facts = make('p', 'facts');
  const operationLabel = make('span');
  const operationBar = make('progress');
  const operation = make('div', 'operation', operationLabel, operationBar);
  const vcpus = make('ul', 'vcpus');
  const devices = make('ul', 'devices');
  vcpus.setAttribute('aria-label', 'vCPUs');
  devices.setAttribute('aria-label', 'Devices');
  const vcpuList = new ViewList<VcpuView>(
    vcpus,
    ({ index }) => String(index),
    () => createVcpu(() => latest?.state ?? ''),
  );
  const deviceList = new ViewList<DeviceReport>(devices, ({ id, slot }) => `${slot}/${id}`, createDevice);
  const queues = new QueueTable();
  const head = make('header', '', name, headline, buttons);
  const element = make('article', 'machine', head, facts, operation, vcpus, devices, queues.element);

  const closeConsole = (): void => {
    panel?.close();
    panel?.element.remove();
    panel = undefined;
    consoleButton.setAttribute('aria-expanded', 'false');
  };
  consoleButton.addEventListener('click', () => {
    if (panel !== undefined || latest === undefined) {
      closeConsole();
      return;
    }
    panel = new ConsolePanel(latest, control());
    element.append(panel.element);
    consoleButton.setAttribute('aria-expanded', 'true');
  });

  const act = async (action: Action, button: HTMLButtonElement): Promise<void> => {
    if (latest === undefined) return;
    const { key, name: machine } = latest;
    const question = QUESTIONS[action];
    if (question !== undefined && !(await confirmAction(question(machine), VERBS[action]))) return;
    button.disabled = true;
    announce('');
    const refusal = await post(`/api/machines/${key}/${action}`, {});
    button.disabled = false;
    if (refusal !== undefined) announce(`${machine}: ${VERBS[action].toLowerCase()}: ${refusal}`);
  };
  const createButton = (action: Action): View<Action> => {
    const button = make('button', '', VERBS[action]);
    button.type = 'button';
    if (QUESTIONS[action] !== undefined) button.classList.add('danger');
    button.addEventListener('click', () => void act(action, button));
    return { element: button, update: () => undefined };
  };
  const actionButtons = make('div', 'actions');
  buttons.append(actionButtons);
  const actionList = new ViewList<Action>(actionButtons, (action) => action, createButton);

  return {
    element,
    update(machine) {
      latest = machine;
      setClass(element, `machine ${machine.severity}`);
      element.setAttribute('aria-label', machine.name);
      setText(name, machine.name);
      setText(headline, machine.headline);
      const memory = machine.memoryBytes > 0 ? `, ${formatBytes(machine.memoryBytes)} of memory` : '';
      setText(facts, `${machine.state}${memory}, ${machine.socket}`);
      updateOperation(operation, operationLabel, operationBar, machine.operation);
      actionList.update(machine.actions);
      vcpuList.update(machine.vcpus);
      deviceList.update(machine.devices);
      queues.update(machine.name, machine.devices);
      setHidden(consoleButton, !machine.hasConsole && panel === undefined);
    },
    close: closeConsole,
  };
}
