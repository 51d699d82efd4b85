"""The baseline of `serve`: mlx-lm alone in a process, answering the same prompts. Lines of JSON in and out."""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load the model named in argv; then for each line {"prompt", "tokens"} print when each token came."""
    import mlx.core as mx
    from mlx_lm import load, stream_generate

    model, tokenizer = load(str(Path(sys.argv[1])))[:2]
    print(json.dumps({"loaded": True, "device": str(mx.default_device())}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": job["prompt"]}], add_generation_prompt=True
        )
        # Never stop early: both sides produce the same number of tokens.
        tokenizer._eos_token_ids = set()  # pyright: ignore
        times_s: list[float] = []
        started_s = time.perf_counter()
        text = ""
        for response in stream_generate(model, tokenizer, ids, max_tokens=job["tokens"]):
            times_s.append(time.perf_counter() - started_s)
            text += response.text
        for special in tokenizer.all_special_tokens:
            # The service leaves them out of the text; mlx-lm, not told to stop at them, writes them.
            text = text.replace(special, "")
        print(json.dumps({"times_s": times_s, "text": text}), flush=True)


if __name__ == "__main__":
    main()
