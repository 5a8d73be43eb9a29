// Keeps a peer's server on the loopback address: Portkey's gateway has no setting for it, and would listen on every one.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== "number") return listen.call(this, port, ...rest);
  const callback = rest.find((each) => typeof each === "function");
  return listen.call(this, { port, host: "127.0.0.1" }, callback);
};
