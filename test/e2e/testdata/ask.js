// Asks server.js once.
require('http').get('http://127.0.0.1:8000/', res => res.pipe(process.stdout))
  .on('error', () => process.exit(1));
