// Seals what stdin says, as JSON, and prints the SealedSecret: `node seal_stdin.mjs < request.json`.
// `submissionKey.publicKey` is base64, as protobuf's JSON form of GetSubmissionKey writes it.

import { sealSecret } from "./seal.mjs";

let input = "";
for await (const chunk of process.stdin) input += chunk;
const request = JSON.parse(input);
request.submissionKey.publicKey = Uint8Array.from(Buffer.from(request.submissionKey.publicKey, "base64"));
const ciphertext = await sealSecret(request);
process.stdout.write(
  JSON.stringify({
    submissionKeyId: request.submissionKey.submissionKeyId,
    ciphertext: Buffer.from(ciphertext).toString("base64"),
  }) + "\n",
);
