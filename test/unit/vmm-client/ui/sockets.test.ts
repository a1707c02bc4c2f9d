import { mkdirSync, rmdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { findSockets, nameMachines, socketList } from '../../../../vmm-client/ui/sockets.ts';
import { cleanupAfterEach } from '../../../support/cleanup.ts';

const namesOf = (...paths: readonly string[]): string[] => nameMachines(paths).map(({ name }) => name);

describe('The sockets of a directory', () => {
  const cleanup = cleanupAfterEach();

  it('are those that are sockets, by name', async () => {
    const directory = cleanup.directory();
    writeFileSync(join(directory, 'a.log'), '');
    // What cannot be looked at is none.
    symlinkSync('loop.sock', join(directory, 'loop.sock'));
    symlinkSync('a.log/below', join(directory, 'odd.sock'));
    for (const name of ['b.sock', 'a.sock']) {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(join(directory, name), resolve));
      cleanup.add(() => new Promise((resolve) => server.close(resolve)));
    }
    expect(findSockets(directory)).toEqual([join(directory, 'a.sock'), join(directory, 'b.sock')]);
    expect(() => findSockets(join(directory, 'none'))).toThrow('ENOENT');
  });
});

describe('The sockets of several places', () => {
  const cleanup = cleanupAfterEach();

  it('are there without those of a directory that is not, of which it is told once', async () => {
    const directory = cleanup.directory();
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(join(directory, 'a.sock'), resolve));
    cleanup.add(() => new Promise((resolve) => server.close(resolve)));
    const gone = join(directory, 'gone');
    const lines: string[] = [];
    const list = socketList(['/run/web.sock'], [gone, directory], (line) => lines.push(line));
    for (let round = 0; round < 3; round += 1) expect(list()).toEqual(['/run/web.sock', join(directory, 'a.sock')]);
    expect(lines).toEqual([expect.stringContaining(`ENOENT: no such file or directory, scandir '${gone}'`)]);
    mkdirSync(gone);
    list();
    rmdirSync(gone);
    list();
    expect(lines).toHaveLength(2);
  });
});

describe('Machines', () => {
  it('are called by what tells their sockets apart', () => {
    expect(namesOf('/run/web.sock', '/run/db.api', '/run/c.socket', '/run/plain')).toEqual(['web', 'db', 'c', 'plain']);
    expect(namesOf('/run/a/api', '/run/b/api', '/run/other')).toEqual(['a/api', 'b/api', 'other']);
    expect(namesOf('/x/a/api', '/y/a/api')).toEqual(['x/a/api', 'y/a/api']);
    expect(namesOf('/run/.sock')).toEqual(['.sock']);
  });

  it('are there once, with a key that stays', () => {
    const [machine, ...others] = nameMachines(['/run/a.sock', '/run/../run/a.sock']);
    expect(others).toEqual([]);
    expect(machine?.key).toMatch(/^[0-9a-f]{12}$/);
    expect(nameMachines(['/run/b.sock', '/run/a.sock'])[1]?.key).toBe(machine?.key);
  });
});
