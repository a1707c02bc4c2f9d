/** What people have to say of an entry of the conformance tables. What is offered and served, the programs say. */

export interface Entry {
  /** For those who offer or serve it: how far, and what is special. */
  readonly remark?: string;
  /** Why it is refused or not offered, where it is. */
  readonly why?: string;
  /** It depends on the host whether a daemon has it: the tables do not depend on the host that makes them. */
  readonly hostDependent?: true;
  /** Tests of what the daemons do with it: `FILE: GROUP > TITLE`, below test/ and without `.test.ts`. */
  readonly proof?: readonly string[];
  /** Tests of our front end with it. */
  readonly used?: readonly string[];
}

/** The entries of a table, by the names of the standards without their prefixes. */
export type Entries = Readonly<Record<string, Entry>>;
