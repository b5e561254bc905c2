"""From text to rows: sources, tokenizers, packing, batches. numpy only; a batch is a pure function of the step."""
