import { describe, expect, it } from 'vitest';
import type { LongOperation } from '../../../../vmm-client/vmm/long-operation.ts';
import { Operations } from '../../../../vmm-client/vmm/operations.ts';

const refusal = (sentence: string) => expect.objectContaining({ code: 'VM_STATE', message: sentence });

/** An operation that goes on until it is told to end, or cancelled. */
function begin(operations: Operations, name: 'send-migration' | 'snapshot' = 'send-migration') {
  let finish: () => void = () => undefined;
  let operation: LongOperation | undefined;
  const done = operations.atLength(
    name,
    () => 'checked',
    (_checked, own) => {
      operation = own;
      return new Promise<void>((resolve, reject) => {
        finish = resolve;
        own.signal.addEventListener('abort', () => reject(own.signal.reason));
      });
    },
  );
  done.catch(() => undefined);
  return { done, finish: () => finish(), operation: () => operation };
}

/** After what is under way has had its turn. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe('operations', () => {
  it('have their turn in the order of their calls, whatever became of those before', async () => {
    const operations = new Operations();
    const order: string[] = [];
    const first = operations.inOrder(async () => {
      await turn();
      order.push('first');
      throw new Error('failed');
    });
    const second = operations.change('change', () => order.push('second'));

    await expect(first).rejects.toThrow('failed');
    await second;
    expect(order).toEqual(['first', 'second']);
  });

  it('refuse changes and a second long one while one is under way, at once', async () => {
    const operations = new Operations();
    const long = begin(operations);
    await turn();

    await expect(operations.change('be paused', () => undefined)).rejects.toEqual(
      refusal('the VM cannot be paused: a send-migration is under way'),
    );
    await expect(begin(operations, 'snapshot').done).rejects.toEqual(
      refusal('there can be no snapshot: a send-migration is under way'),
    );

    long.finish();
    await long.done;
    expect(await operations.change('be paused', () => 7)).toBe(7);
  });

  it('refuse changes also while a long one waits for its turn', async () => {
    const operations = new Operations();
    let release: () => void = () => undefined;
    const boot = operations.inOrder(
      () =>
        new Promise<void>((resolve) => {
          release = resolve;
        }),
    );
    const long = begin(operations);
    await turn();

    await expect(operations.change('change', () => undefined)).rejects.toEqual(
      refusal('the VM cannot change: a send-migration is under way'),
    );

    release();
    await boot;
    await turn();
    long.finish();
    await long.done;
  });

  it('that end everything end a long one first', async () => {
    const operations = new Operations();
    const long = begin(operations);
    await turn();

    expect(await operations.afterAll('the VM is deleted', () => 'deleted')).toBe('deleted');

    await expect(long.done).rejects.toMatchObject({ code: 'VM', message: 'send-migration: the VM is deleted' });
    expect(operations.progress).toMatchObject({ phase: 'cancelled', error: 'send-migration: the VM is deleted' });
  });

  it('are cancelled before their turn too', async () => {
    const operations = new Operations();
    const boot = operations.inOrder(turn);
    const long = begin(operations);

    await operations.cancelMigration();

    await boot;
    await expect(long.done).rejects.toThrow('send-migration: cancelled by vm.cancel-migration');
    expect(long.operation()).toBeUndefined();
  });

  it('tell how far they are, and how they ended', async () => {
    const operations = new Operations();
    expect(() => operations.progress).toThrow(expect.objectContaining({ code: 'VM_NOT_FOUND' }));
    const long = begin(operations);
    await turn();
    expect(operations.progress).toMatchObject({ operation: 'send-migration', phase: 'starting', round: 0 });

    long.operation()?.report({ phase: 'memory', round: 2, bytes_done: 5, bytes_total: 10, converges: false });
    expect(operations.progress).toMatchObject({
      phase: 'memory',
      round: 2,
      bytes_done: 5,
      dirty_bytes: 0,
      converges: false,
    });

    long.finish();
    await long.done;
    const { elapsed_ms, ...end } = operations.progress;
    expect(end).toMatchObject({ phase: 'completed', bytes_done: 5 });
    await turn();
    expect(operations.progress.elapsed_ms).toBe(elapsed_ms);
  });

  it('that are refused leave what was told of the last one', async () => {
    const operations = new Operations();
    const long = begin(operations);
    await turn();
    long.finish();
    await long.done;

    const refused = operations.atLength(
      'restore',
      () => {
        throw new Error('there is a VM');
      },
      async () => undefined,
    );

    await expect(refused).rejects.toThrow('there is a VM');
    expect(operations.progress.operation).toBe('send-migration');
    expect(await operations.change('change', () => 1)).toBe(1);
  });

  it('say why one failed', async () => {
    const operations = new Operations();
    const failed = operations.atLength(
      'snapshot',
      () => 0,
      () => Promise.reject(new Error('no space')),
    );

    await expect(failed).rejects.toThrow('no space');

    expect(operations.progress).toMatchObject({ operation: 'snapshot', phase: 'failed', error: 'no space' });
  });

  it('have a migration to cancel, or refuse', async () => {
    const operations = new Operations();
    await expect(operations.cancelMigration()).rejects.toEqual(refusal('no migration is under way'));
    const snapshot = begin(operations, 'snapshot');
    await turn();
    await expect(operations.cancelMigration()).rejects.toEqual(refusal('no migration is under way'));
    snapshot.finish();
    await snapshot.done;
  });
});
