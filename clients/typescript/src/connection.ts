// How a server is reached: addresses, TLS, token, options of the channel. Checked before anything is sent.
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { Client, credentials, Metadata, type ChannelCredentials, type ChannelOptions } from '@grpc/grpc-js';
import { isLoopback, parseAddress } from './address.js';
import { LimbeckError, type Problem } from './errors.js';
import { cleanToken, readToken } from './token.js';

/** Files (PEM) for TLS. */
export interface TlsFiles {
  /** Replaces the usual authorities. */
  readonly ca?: string;
  /** The client's own certificate. */
  readonly cert?: string;
  /** Its key, unencrypted. */
  readonly key?: string;
}

/** Where the server is and how it is reached. */
export interface ConnectionOptions {
  /** `host:port`, or several of them for replicas, which are used in turn. */
  readonly address: string | readonly string[];
  /** The bearer token itself. */
  readonly token?: string;
  /** File of the bearer token, read anew for each call; a byte order mark and a final newline are no part of it. */
  readonly tokenFile?: string;
  /** TLS is used unless all addresses are of this machine; this asks for it there too. */
  readonly tls?: TlsFiles;
  /** No TLS, although the server is on another machine. */
  readonly insecure?: boolean;
}

/** Checked settings of a connection. The constructor throws REQUEST_INVALID with everything that is wrong with them. */
export class Connection {
  readonly addresses: readonly string[];
  /** The addresses, for messages. */
  readonly name: string;
  readonly #loopback: boolean;
  readonly #credentials: ChannelCredentials;
  readonly #token: string | undefined;
  readonly #tokenFile: string | undefined;

  constructor(options: ConnectionOptions) {
    const problems: Problem[] = [];
    const given = typeof options.address === 'string' ? [options.address] : options.address;
    const places = given.flatMap((address) => parseAddress(address, problems) ?? []);
    if (given.length === 0)
      problems.push({ message: 'no address is given', field: 'address', hint: 'give host:port' });
    this.addresses = places.map(({ text }) => text);
    this.name = this.addresses.join(', ');
    this.#loopback = places.every(({ host }) => isLoopback(host));
    if (options.token !== undefined && options.tokenFile !== undefined) {
      problems.push({ message: 'both a token and a tokenFile are given', field: 'tokenFile' });
    }
    this.#token = options.token === undefined ? undefined : cleanToken(options.token, '', 'token', problems);
    this.#tokenFile = options.tokenFile;
    if (options.tokenFile !== undefined) readToken(options.tokenFile, problems);
    if (options.insecure && options.tls) {
      problems.push({ message: 'insecure means no TLS, and tls is given', field: 'insecure' });
    }
    const secure = options.tls !== undefined || !(this.#loopback || options.insecure);
    this.#credentials = secure ? secured(options.tls ?? {}, problems) : credentials.createInsecure();
    if (problems.length > 0) {
      throw new LimbeckError('REQUEST_INVALID', problems, 'The connection cannot be made like this.');
    }
  }

  /** What goes with each call. Throws REQUEST_INVALID where the token's file is no longer good. */
  metadata(): Metadata {
    const problems: Problem[] = [];
    const token = this.#tokenFile === undefined ? this.#token : readToken(this.#tokenFile, problems);
    if (problems.length > 0) throw new LimbeckError('REQUEST_INVALID', problems);
    const metadata = new Metadata();
    if (token !== undefined) metadata.set('authorization', `Bearer ${token}`);
    return metadata;
  }

  /** A gRPC client, with a connection of its own, for one of the addresses. */
  dial(address: string): Client {
    const options: ChannelOptions = {
      'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }), // replicas of one name
      'grpc.enable_retries': 0, // calls are repeated here, where it is known what was answered
      'grpc.use_local_subchannel_pool': 1, // a connection for each client of a process
      'grpc.keepalive_time_ms': 30_000,
      'grpc.keepalive_timeout_ms': 20_000,
      'grpc.initial_reconnect_backoff_ms': 200,
      'grpc.max_reconnect_backoff_ms': 5_000,
      ...(this.#loopback && { 'grpc.enable_http_proxy': 0 }), // gRPC sends even 127.0.0.1 through http_proxy
    };
    return new Client(address, this.#credentials, options);
  }
}

function secured({ ca, cert, key }: TlsFiles, problems: Problem[]): ChannelCredentials {
  const before = problems.length;
  const authorities = content(ca, 'tls.ca', problems);
  const chain = content(cert, 'tls.cert', problems);
  const secret = content(key, 'tls.key', problems);
  if ((cert === undefined) !== (key === undefined)) {
    problems.push({
      message: 'a certificate needs its key, and a key its certificate',
      field: 'tls.cert, tls.key',
    });
  }
  if (authorities && ca) attempt(() => new X509Certificate(authorities), ca, 'tls.ca', 'it is PEM', problems);
  if (chain && secret && cert) {
    const hint = 'both are PEM, the key unencrypted';
    attempt(() => createSecureContext({ cert: chain, key: secret }), cert, 'tls.cert', hint, problems);
  }
  if (problems.length > before) return credentials.createInsecure(); // never used: the constructor throws
  return credentials.createSsl(authorities ?? null, secret ?? null, chain ?? null);
}

function content(path: string | undefined, field: string, problems: Problem[]): Buffer | undefined {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path);
  } catch (error) {
    problems.push({ message: `${path} cannot be read: ${(error as Error).message}`, field });
    return undefined;
  }
}

function attempt(use: () => unknown, path: string, field: string, hint: string, problems: Problem[]): void {
  try {
    use();
  } catch (error) {
    problems.push({ message: `${path} cannot be used: ${(error as Error).message}`, field, hint });
  }
}
