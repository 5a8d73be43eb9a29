// Seals a provider key in the owner's browser, so that nothing between it and KeyVault reads the key.
//
// HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, on WebCrypto alone. What it is bound to
// is written in docs/envelope.md. Chrome 133, Firefox 130, Safari 17 and Node 20 have what it needs.

const text = new TextEncoder();
const KEM = concat(text.encode("KEM"), number(0x0020, 2));
const HPKE = concat(text.encode("HPKE"), number(0x0020, 2), number(0x0001, 2), number(0x0002, 2));
const NOTHING = new Uint8Array();
const MODE_BASE = number(0x00, 1); // No pre-shared key, no sender's key.

/**
 * Seals `secret` for one owner, provider, base URL and request.
 *
 * `submissionKey` is what GetSubmissionKey answers: {submissionKeyId, publicKey (32 bytes), deployment}. `ownerId`, `provider`,
 * `baseUrl` and `requestId` must be those of the CreateKey request, letter by letter. Returns the `ciphertext` of SealedSecret.
 */
export async function sealSecret({ submissionKey, ownerId, provider, baseUrl = "", requestId, secret }) {
  const { deployment, submissionKeyId, publicKey } = submissionKey;
  const parts = ["byok.submission.v1", deployment, ownerId, provider, baseUrl, requestId, submissionKeyId];
  const info = concat(...parts.map((part) => lengthed(text.encode(part))));
  return seal(publicKey, info, text.encode(secret));
}

/** Seals `plaintext` to a raw X25519 public key under `info`; returns the encapsulated key, then the ciphertext. */
export async function seal(publicKey, info, plaintext) {
  const { encapsulated, shared } = await encapsulate(publicKey);
  const context = concat(
    MODE_BASE,
    await labeledExtract(HPKE, NOTHING, "psk_id_hash", NOTHING),
    await labeledExtract(HPKE, NOTHING, "info_hash", info),
  );
  const secret = await labeledExtract(HPKE, shared, "secret", NOTHING);
  const key = await crypto.subtle.importKey(
    "raw", await labeledExpand(HPKE, secret, "key", context, 32), "AES-GCM", false, ["encrypt"],
  );
  const iv = await labeledExpand(HPKE, secret, "base_nonce", context, 12);
  const ciphertext = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, key, plaintext);
  return concat(encapsulated, new Uint8Array(ciphertext));
}


async function encapsulate(publicKey) {
  const recipient = await crypto.subtle.importKey("raw", publicKey, { name: "X25519" }, true, []);
  const ephemeral = await crypto.subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]);
  const encapsulated = new Uint8Array(await crypto.subtle.exportKey("raw", ephemeral.publicKey));
  const exchanged = await crypto.subtle.deriveBits({ name: "X25519", public: recipient }, ephemeral.privateKey, 256);
  const extracted = await labeledExtract(KEM, NOTHING, "eae_prk", new Uint8Array(exchanged));
  const context = concat(encapsulated, publicKey);
  return { encapsulated, shared: await labeledExpand(KEM, extracted, "shared_secret", context, 32) };
}

async function labeledExtract(suite, salt, label, material) {
  return hmac(salt, concat(text.encode("HPKE-v1"), suite, text.encode(label), material));
}

async function labeledExpand(suite, key, label, info, length) {
  // One block of HKDF is 32 bytes, and nothing here is longer.
  const labeled = concat(number(length, 2), text.encode("HPKE-v1"), suite, text.encode(label), info);
  return (await hmac(key, concat(labeled, number(1, 1)))).slice(0, length);
}

async function hmac(key, message) {
  // WebCrypto takes no empty key; HMAC pads keys with zeros, so 32 of them are the same.
  const raw = key.length ? key : new Uint8Array(32);
  const imported = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, message));
}

function lengthed(bytes) {
  return concat(number(bytes.length, 4), bytes);
}

function number(value, length) {
  const bytes = new Uint8Array(length);
  for (let at = length - 1; at >= 0; at -= 1, value = Math.floor(value / 256)) bytes[at] = value % 256;
  return bytes;
}

function concat(...parts) {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}
