/**
 * Writes the archive format that Linux unpacks as an initramfs ("newc", Documentation/driver-api/early-userspace/
 * buffer-format.rst of the kernel). Written here because cpio(1) can make device nodes only as root.
 *
 *     "070701"  ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
 *               (13 fields of 8 hexadecimal digits), name NUL, padded to 4, data, padded to 4
 */

import { readFileSync } from 'node:fs';

const S_IFDIR = 0o040000;
const S_IFCHR = 0o020000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

const padding = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4);

export class CpioArchive {
  readonly #parts: Buffer[] = [];
  readonly #names = new Set<string>();

  /** Adds a directory and those above it. */
  directory(path: string): this {
    const parent = path.slice(0, Math.max(0, path.lastIndexOf('/')));
    if (parent !== '') this.directory(parent);
    if (!this.#names.has(path)) this.#add(path, S_IFDIR | 0o755, Buffer.alloc(0));
    return this;
  }

  file(path: string, content: string | Buffer, permissions = 0o755): this {
    this.#parentOf(path);
    return this.#add(path, S_IFREG | permissions, Buffer.from(content));
  }

  /** Adds a copy of the host's file `source`. */
  copy(path: string, source: string): this {
    return this.#names.has(path) ? this : this.file(path, readFileSync(source));
  }

  symlink(path: string, target: string): this {
    this.#parentOf(path);
    return this.#add(path, S_IFLNK | 0o777, Buffer.from(target));
  }

  characterDevice(path: string, major: number, minor: number): this {
    this.#parentOf(path);
    return this.#add(path, S_IFCHR | 0o600, Buffer.alloc(0), major, minor);
  }

  /** The archive; the kernel takes several of them one after the other. */
  toBuffer(): Buffer {
    return Buffer.concat([...this.#parts, this.#entry('TRAILER!!!', 0, 0, Buffer.alloc(0), 0, 0)]);
  }

  #parentOf(path: string): void {
    const slash = path.lastIndexOf('/');
    if (slash > 0) this.directory(path.slice(0, slash));
  }

  #add(path: string, mode: number, data: Buffer, major = 0, minor = 0): this {
    if (this.#names.has(path)) throw new Error(`${path} is in the archive already`);
    this.#names.add(path);
    this.#parts.push(this.#entry(path, this.#names.size, mode, data, major, minor));
    return this;
  }

  #entry(path: string, inode: number, mode: number, data: Buffer, major: number, minor: number): Buffer {
    const name = Buffer.from(`${path}\0`);
    const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    return Buffer.concat([header, name, padding(header.length + name.length), data, padding(data.length)]);
  }
}
