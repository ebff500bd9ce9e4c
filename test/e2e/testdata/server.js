// Counts its requests, in memory only.
const http = require('http');
let n = 0;
const secret = require('crypto').randomBytes(8).toString('hex');
http.createServer((req, res) => res.end(`${++n} ${secret}\n`)).listen(8000, '127.0.0.1');
