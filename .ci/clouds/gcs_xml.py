#!/usr/bin/env python3
"""A front that lets clients of Google Cloud Storage's XML API, such as object_store, use an emulator that speaks its JSON API alone (gcp-storage-emulator).

Owns: translating puts, reads, listings and deletions, and the precondition of a put (x-goog-if-generation-match), which the emulator does not know. Does not
own: any object.

usage: gcs_xml.py PORT EMULATOR_PORT
"""

import email.utils
import http.client
import json
import sys
import threading
import urllib.parse
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

META = "x-goog-meta-"
PUTS = threading.Lock()


def emulator(method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", EMULATOR, timeout=60)
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def quoted(text):
    return urllib.parse.quote(text, safe="")


def row(bucket, key):
    """What the emulator knows of an object; None where there is none."""
    status, body = emulator("GET", f"/storage/v1/b/{quoted(bucket)}/o/{quoted(key)}")
    return json.loads(body) if status == 200 else None


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def place(self):
        path, _, query = self.path.partition("?")
        bucket, _, key = path.lstrip("/").partition("/")
        return urllib.parse.unquote(bucket), urllib.parse.unquote(key), dict(urllib.parse.parse_qsl(query))

    def answer(self, status, body=b"", headers=(), length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_PUT(self):
        bucket, key, _ = self.place()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        metadata = {name[len(META) :].lower(): value for name, value in self.headers.items() if name.lower().startswith(META)}
        wanted = self.headers.get("x-goog-if-generation-match")
        with PUTS:
            found = row(bucket, key)
            if wanted is not None and wanted != (found["generation"] if found else "0"):
                return self.refuse(412, "PreconditionFailed")
            head = json.dumps({"name": key, "metadata": metadata, "contentType": "application/octet-stream"}).encode()
            edge = uuid.uuid4().hex.encode()
            parts = b"--%s\r\nContent-Type: application/json\r\n\r\n%s\r\n--%s\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n--%s--\r\n"
            status, reply = emulator(
                "POST",
                f"/upload/storage/v1/b/{quoted(bucket)}/o?uploadType=multipart",
                parts % (edge, head, edge, body, edge),
                {"Content-Type": f"multipart/related; boundary={edge.decode()}"},
            )
        if status != 200:
            return self.refuse(404, "NoSuchBucket") if status == 404 else self.refuse(500, "InternalError")
        stored = json.loads(reply)
        self.answer(200, headers=[("ETag", f'"{stored["etag"]}"'), ("x-goog-generation", stored["generation"])])

    def do_GET(self):
        bucket, key, query = self.place()
        if not key:
            return self.listing(bucket, query)
        found = row(bucket, key)
        if found is None:
            return self.refuse(404, "NoSuchKey")
        headers = [
            ("ETag", f'"{found["etag"]}"'),
            ("Last-Modified", email.utils.format_datetime(moment(found["updated"]), usegmt=True)),
            ("x-goog-generation", found["generation"]),
            ("Accept-Ranges", "bytes"),
        ] + [(META + name, value) for name, value in found.get("metadata", {}).items()]
        size = int(found["size"])
        if self.command == "HEAD":
            return self.answer(200, headers=headers, length=size)
        _, body = emulator("GET", f"/storage/v1/b/{quoted(bucket)}/o/{quoted(key)}?alt=media")
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, body, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return self.refuse(416, "InvalidRange")
        self.answer(206, body[start:end], headers + [("Content-Range", f"bytes {start}-{end - 1}/{size}")])

    do_HEAD = do_GET

    def do_DELETE(self):
        bucket, key, _ = self.place()
        status, _ = emulator("DELETE", f"/storage/v1/b/{quoted(bucket)}/o/{quoted(key)}")
        self.answer(204) if status in (200, 204) else self.refuse(404, "NoSuchKey")

    def listing(self, bucket, query):
        status, body = emulator("GET", f"/storage/v1/b/{quoted(bucket)}/o?prefix={quoted(query.get('prefix', ''))}&maxResults=100000")
        if status != 200:
            return self.refuse(404, "NoSuchBucket")
        after = query.get("continuation-token") or query.get("start-after") or ""
        delimiter, prefix, most = query.get("delimiter"), query.get("prefix", ""), int(query.get("max-keys", 1000))
        objects, prefixes, last, more = [], set(), after, False
        for item in sorted(json.loads(body).get("items", []), key=lambda item: item["name"]):
            name = item["name"]
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            place = name[: cut + 1] if cut >= 0 else name
            if place <= after or place in prefixes:
                continue
            if len(objects) + len(prefixes) >= most:
                more = True
                break
            last = place
            prefixes.add(place) if cut >= 0 else objects.append(item)
        rows = "".join(
            f"<Contents><Key>{escape(o['name'])}</Key><Size>{o['size']}</Size><LastModified>{o['updated']}</LastModified>"
            f"<ETag>&quot;{o['etag']}&quot;</ETag><Generation>{o['generation']}</Generation></Contents>"
            for o in objects
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(prefixes))
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        page = f"<?xml version='1.0'?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        self.answer(200, page.encode())


def moment(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


if __name__ == "__main__":
    PORT, EMULATOR = int(sys.argv[1]), int(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", PORT), Front).serve_forever()
