/**
 * A platform service in another language: it knows the .proto files, its certificate and the published rule by which
 * request ids are derived, and nothing else of the suite.
 *
 * It reads one job as JSON from standard input, {"call": "evaluate" | "derive", ...}, and writes one JSON answer.
 */
"use strict";

const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

/**
 * Derive a UUIDv7: 48 bits of milliseconds, then the first ten bytes of SHA-256 over the parts, each preceded by its
 * length in 8 bytes, big endian; version and variant are set last.
 */
function derivedUuid7(milliseconds, parts) {
  const digest = createHash("sha256");
  for (const part of parts) {
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(part.length));
    digest.update(length).update(part);
  }
  const value = Buffer.alloc(16);
  value.writeUIntBE(milliseconds, 0, 6);
  digest.digest().copy(value, 6, 0, 10);
  value[6] = (value[6] & 0x0f) | 0x70;
  value[8] = (value[8] & 0x3f) | 0x80;
  const text = value.toString("hex");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}

/** Call router.v1 OperationService.EvaluateGuardrail over mTLS; a refusal is an answer too, with its code. */
function evaluate({ protos, target, tls, request, deadline_ms: deadlineMs }) {
  const definition = loader.loadSync("byok/router/v1/operation_service.proto", {
    includeDirs: [protos],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
  });
  const { OperationService } = grpc.loadPackageDefinition(definition).byok.router.v1;
  const credentials = grpc.credentials.createSsl(
    readFileSync(tls.ca),
    tls.private_key ? readFileSync(tls.private_key) : null,
    tls.certificate ? readFileSync(tls.certificate) : null,
  );
  const client = new OperationService(target, credentials);
  return new Promise((resolve) => {
    client.EvaluateGuardrail(request, { deadline: Date.now() + deadlineMs }, (error, response) => {
      client.close();
      resolve(error ? { code: grpc.status[error.code], message: error.details } : { code: "OK", response });
    });
  });
}

const CALLS = {
  evaluate,
  derive: ({ jobs }) =>
    jobs.map(({ milliseconds, parts_hex: parts }) =>
      derivedUuid7(milliseconds, parts.map((part) => Buffer.from(part, "hex"))),
    ),
};

async function main() {
  const job = JSON.parse(readFileSync(0, "utf8"));
  process.stdout.write(`${JSON.stringify(await CALLS[job.call](job))}\n`);
}

main();
