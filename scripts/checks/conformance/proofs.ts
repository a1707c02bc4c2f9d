/** Tests that prove many entries of the conformance tables, or all of a table. */

/** Every message, to every daemon: served, or refused as the protocol says. */
export const ANSWERED =
  'integration/conformance: vhost-user-$name > serves $name if it offers what that belongs to, and refuses it if not';
/** Every bit, to every daemon. */
export const NEGOTIATED =
  'integration/conformance: vhost-user-$name > takes the bits that it offers, and refuses all others';
/** What the front end has no use for on the channel of the back end. */
export const REFUSED_BY_FRONTEND = 'unit/vmm-client/frontend/frontend: the request channel > refuses everything else';
export const NEGOTIATION = 'unit/vmm-client/frontend/frontend: negotiation > asks and tells in the order of QEMU';
export const ANY_ORDER = 'integration/connections: messages in an order of their own';
export const CRASH =
  'integration/crash-recovery: a daemon (%s) killed under write load and started again loses and repeats nothing';
export const LOGGED =
  'integration/dirty-log: a block device with a %s ring > marks every page that it writes, of data, statuses and ring, and none that it reads';
export const BEHIND_IOMMU =
  'integration/conformance-core: behind an IOMMU > a missing translation is asked for, and used when it comes';
export const IN_BAND =
  'integration/conformance-core: notifications in band > start a ring, carry its kicks and its calls';
export const CONFIG_CHANGE =
  'integration/configuration: a disk > that grew is told to the front end on SIGHUP, and can be used to its new end';
/** The front end takes what it uses, and no other bit. */
export const UNUSED_PROTOCOL_FEATURES =
  'unit/vmm-client/frontend/frontend: negotiation > accepts nothing that it does not know';
export const UNUSED_FEATURES = 'spec/vhost-user-conformance: a driver of a %s > takes these bits and no others';
