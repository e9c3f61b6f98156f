// `host`, `host:port` and `[v6]:port`.
import { BlockList, isIP } from 'node:net';
import type { Problem } from './errors.js';

const DEFAULT_PORT = 7411;
const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4');
LOOPBACK.addAddress('::1', 'ipv6');

/** A server's place. */
export interface Address {
  readonly host: string;
  /** As gRPC and messages name it. */
  readonly text: string;
}

/** Reads an address; pushes a problem where it is none. */
export function parseAddress(address: string, problems: Problem[]): Address | undefined {
  const hint = `give host:port, for example 127.0.0.1:${DEFAULT_PORT}`;
  const match = /^(?:\[([0-9A-Fa-f:.%]+)\]|([^:\s[\]/]+))(?::(.*))?$/.exec(address.trim());
  if (match === null) {
    problems.push({ message: `${JSON.stringify(address)} is no address`, field: 'address', hint });
    return undefined;
  }
  const host = match[1] ?? match[2] ?? '';
  const port = match[3] ?? String(DEFAULT_PORT);
  if (!/^[0-9]{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535) {
    problems.push({ message: `port ${port} is not one of 1 to 65535`, field: 'address', hint });
    return undefined;
  }
  return { host, text: `${host.includes(':') ? `[${host}]` : host}:${Number(port)}` };
}

/** Whether it is of this machine. */
export function isLoopback(host: string): boolean {
  if (/^localhost\.?$/i.test(host)) return true;
  const family = isIP(host);
  return family > 0 && LOOPBACK.check(host, family === 6 ? 'ipv6' : 'ipv4');
}
