/** A stand-in for the machine behind the API. */

/** What tests look at in a configuration. */
interface Config {
  readonly payload: { readonly kernel: string };
}

export const PING = { build_version: 'ringside 1.2.3', version: '1.2.3', pid: 77, features: ['a'] };
export const INFO = { config: { payload: { kernel: '/k' } }, state: 'Running' as const, memory_actual_size: 1 << 29 };
export const COUNTERS = { _disk0: { kicks: 5 } };

/** Notes what it was asked; `fail` says what an operation is to do instead of succeeding. */
export class FakeControl {
  readonly calls: string[] = [];
  readonly configs: Config[] = [];
  readonly fail = new Map<string, () => Promise<never> | Promise<void>>();

  async #run(name: string): Promise<void> {
    this.calls.push(name);
    await this.fail.get(name)?.();
  }

  ping() {
    this.calls.push('ping');
    return PING;
  }
  async create(config: Config) {
    this.configs.push(config);
    await this.#run('create');
  }
  async info() {
    await this.#run('info');
    return INFO;
  }
  async counters() {
    await this.#run('counters');
    return COUNTERS;
  }
  boot = () => this.#run('boot');
  pause = () => this.#run('pause');
  resume = () => this.#run('resume');
  shutdown = () => this.#run('shutdown');
  reboot = () => this.#run('reboot');
  delete = () => this.#run('delete');
  shutdownVmm = () => this.#run('shutdownVmm');
}
