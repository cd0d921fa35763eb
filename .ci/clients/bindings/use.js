// An application that finds its services with kube-service-bindings, which nobody here wrote.
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { getBinding } = require('kube-service-bindings');
const { Client } = require('pg');
const Redis = require('ioredis');
const { createClient } = require('redis');

// It looks no further than at the first binding that is of another type (2.1.0), so it is shown one.
const root = process.env.SERVICE_BINDING_ROOT;
const shown = fs.mkdtempSync(path.join(os.tmpdir(), 'shown-'));
process.on('exit', () => fs.rmSync(shown, { recursive: true }));

function find(type, client, name) {
  const place = fs.mkdtempSync(path.join(shown, 'root-'));
  process.env.SERVICE_BINDING_ROOT = place;
  fs.symlinkSync(path.join(root, name), path.join(place, name));
  return getBinding(type, client, { removeUnmapped: false });
}

async function main() {
  for (const id of ['orders-by-socket', 'orders-by-port']) {
    const binding = find('POSTGRESQL', 'pg', id);
    assert.strictEqual(binding.provider, 'gobs');
    const client = new Client(binding);
    await client.connect();
    const { rows } = await client.query('select session_user as name, current_database() as database');
    assert.deepStrictEqual(rows, [{ name: binding.user, database: 'orders' }]);
    await client.end();
  }
  for (const id of ['cache-by-socket', 'cache-by-port']) {
    const cache = new Redis(find('REDIS', 'ioredis', id));
    await cache.incr('node');
    cache.disconnect();
  }
  const cache = createClient(find('REDIS', 'redis', 'cache-by-port'));
  await cache.connect();
  await cache.incr('node');
  await cache.close();
  console.log('kube-service-bindings postgresql redis');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
