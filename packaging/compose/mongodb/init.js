// Makes the replica set and the user of the engine. It can run again at any time: what is there stays, and the password is set anew.
const server = 'mongodb:27017';
const root = `mongodb://root:${encodeURIComponent(process.env.MONGODB_ROOT_PASSWORD)}@${server}/admin?directConnection=true`;

const admin = connect(root).getSiblingDB('admin');
try {
  admin.adminCommand({ replSetInitiate: { _id: 'rs0', members: [{ _id: 0, host: server }] } });
} catch (error) {
  if (error.codeName !== 'AlreadyInitialized') throw error;
}
for (let tries = 0; !admin.hello().isWritablePrimary; tries++) {
  if (tries === 120) throw new Error('there is no primary after 60 s');
  sleep(500);
}

// The metadata, every source, and every database that a restore or a drill writes. What a source alone needs is less.
const user = {
  pwd: process.env.ENGINE_MONGODB_PASSWORD,
  roles: [
    { role: 'readWriteAnyDatabase', db: 'admin' },
    { role: 'dbAdminAnyDatabase', db: 'admin' },
    { role: 'clusterMonitor', db: 'admin' }, // which replica set it is
    { role: 'read', db: 'local' }, // how far back the oplog reaches
  ],
};
if (admin.getUser('argon')) {
  admin.updateUser('argon', user);
} else {
  admin.createUser({ user: 'argon', ...user });
}
print('the replica set rs0 and the user argon are there');
