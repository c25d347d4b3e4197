"""What is sent where the API takes something that no schema describes: archives, and what is none."""

import io
import tarfile

import schemathesis
from hypothesis import strategies as st

KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])


def archive(entries):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as writer:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if kind == tarfile.REGTYPE:
                entry.size = len(content)
            else:
                entry.linkname = "elsewhere"
            writer.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


ENTRIES = st.lists(st.tuples(st.text(max_size=300), KINDS, st.binary(max_size=2000)), max_size=5)
schemathesis.openapi.media_type("application/x-tar", ENTRIES.map(archive) | st.binary())
