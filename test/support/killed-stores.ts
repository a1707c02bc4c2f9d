/**
 * A process that is killed between two stores to shared memory: stores of typed arrays over chosen buffers, atomic ones
 * too, are counted, and the one after the last that is let through throws instead. Typed arrays are watched that are made
 * while this is installed.
 */

const GLOBALS = ['Uint8Array', 'Uint16Array', 'Uint32Array', 'Int32Array', 'Float64Array'] as const;

type AnyArray = Int32Array<ArrayBuffer>;
type ArrayConstructor = new (...args: unknown[]) => AnyArray;

export class Killed extends Error {}

export class KilledStores {
  /** Stores that are let through. */
  left = Number.POSITIVE_INFINITY;
  /** Stores seen. */
  count = 0;
  readonly #buffers = new WeakSet<ArrayBuffer>();
  readonly #targets = new WeakMap<AnyArray, AnyArray>();
  readonly #originals = new Map<string, unknown>();
  readonly #load = Atomics.load;
  readonly #store = Atomics.store;

  watch(buffer: ArrayBuffer): ArrayBuffer {
    this.#buffers.add(buffer);
    return buffer;
  }

  install(): void {
    const globals = globalThis as unknown as Record<string, ArrayConstructor>;
    for (const name of GLOBALS) {
      const original = globals[name] as ArrayConstructor;
      this.#originals.set(name, original);
      globals[name] = new Proxy(original, { construct: (target, args) => this.#construct(target, args) });
    }
    const target = (array: AnyArray): AnyArray => this.#targets.get(array) ?? array;
    Atomics.load = ((array: AnyArray, index: number) => this.#load(target(array), index)) as typeof Atomics.load;
    Atomics.store = ((array: AnyArray, index: number, value: number) => {
      if (this.#targets.has(array)) this.#note();
      return this.#store(target(array), index, value);
    }) as typeof Atomics.store;
  }

  uninstall(): void {
    const globals = globalThis as unknown as Record<string, unknown>;
    for (const [name, original] of this.#originals) globals[name] = original;
    this.#originals.clear();
    Atomics.load = this.#load;
    Atomics.store = this.#store;
  }

  /** Runs something that may be killed after `stores` more stores. Returns whether it was. */
  run(stores: number, what: () => void): boolean {
    this.left = stores;
    try {
      what();
      return false;
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      return true;
    } finally {
      this.left = Number.POSITIVE_INFINITY;
    }
  }

  #note(): void {
    if (this.left === 0) throw new Killed();
    this.left -= 1;
    this.count += 1;
  }

  #construct(original: ArrayConstructor, args: unknown[]): AnyArray {
    const array = new original(...args);
    if (!this.#buffers.has(args[0] as ArrayBuffer)) return array;
    const watched = new Proxy(array, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        return typeof value === 'function' ? value.bind(target) : value;
      },
      set: (target, key, value) => {
        this.#note();
        return Reflect.set(target, key, value, target);
      },
    });
    this.#targets.set(watched, array);
    return watched;
  }
}
