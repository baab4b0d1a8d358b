"""Documents of ready tokens as text: what held-out tasks are built from where there is no corpus."""

import logging
from random import Random

from openspectra.artifacts import Artifact
from openspectra.data.documents import Document
from openspectra.data.encoding import Encoder
from openspectra.data.shards import dtype_for
from openspectra.data.tokenizer import end_of_text_id, load_tokenizer, num_ids
from openspectra.data.tokens import Tokens

logger = logging.getLogger(__name__)


def decoded_documents(split: Artifact, tokenizer: Artifact, count: int, seed: str) -> list[Document]:
    """Return the texts of up to `count` documents of a split of tokens, drawn by seed, in that order.

    Only documents whose text becomes the very same tokens again: then a score of the text is one of the tokens. A
    byte-level tokenizer passes all but those that were cut within a character or made by other rules; they are logged.
    """
    tokens, loaded, end_of_text = Tokens(split), load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    encoder = Encoder(loaded, dtype_for(num_ids(loaded)))
    places = tokens.documents()
    Random(seed).shuffle(places)
    documents, inexact = [], []
    for place in places:
        if len(documents) == count:
            break
        ids = tokens.ids(place).tolist()
        ids = ids[:-1] if ids[-1] == end_of_text else ids
        text = loaded.decode(ids, skip_special_tokens=False)
        document = Document(place.document_id, text, place.source)
        (again,) = encoder.encode([document])
        if again.ids.tolist() != ids:
            inexact.append(place.document_id)
        elif text.strip():
            documents.append(document)
    if inexact:
        names = ", ".join(inexact[:3]) + (", ..." if len(inexact) > 3 else "")
        logger.warning("%d documents passed over, as their text is not their tokens again: %s", len(inexact), names)
    return documents
