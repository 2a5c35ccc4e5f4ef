// Byte-level byte-pair encoding, from the JSON that tokenizers writes: text to token ids and back.

// As GPT-2 cuts text before it is encoded: words and numbers with a space in front, runs of other letters, white space.
const PIECES = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** The letter that stands for each byte: itself if it can be printed, else one from U+0100 on. */
function byteLetters() {
  const printable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0xad) || byte > 0xad;
  let other = 0x100;
  return Array.from({length: 256}, (_, byte) => String.fromCharCode(printable(byte) ? byte : other++));
}

export function openTokenizer(json) {
  const letters = byteLetters();
  const bytes = new Map(letters.map((letter, byte) => [letter, byte]));
  const {vocab, merges} = json.model;
  const ranks = new Map(merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
  const special = new Map(json.added_tokens.map(({id, content}) => [id, content]));
  const parts = new Map(Object.entries(vocab).map(([name, id]) => [id, [...name].map((letter) => bytes.get(letter))]));

  /** The pair that was learned first is joined first, until none is left. */
  function joined(symbols) {
    for (;;) {
      let best = -1, least = Infinity;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Infinity;
        if (rank < least) [best, least] = [i, rank];
      }
      if (best < 0) return symbols;
      symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
    }
  }

  function encode(text) {
    const pieces = text.match(PIECES) ?? [];
    const utf8 = new TextEncoder();
    return pieces.flatMap((piece) => joined([...utf8.encode(piece)].map((byte) => letters[byte])).map((name) => vocab[name]));
  }

  function decode(tokens) {
    const found = tokens.flatMap((token) => (special.has(token) ? [] : parts.get(token)));
    return new TextDecoder().decode(Uint8Array.from(found));
  }

  return {encode, decode, isSpecial: (token) => special.has(token)};
}
