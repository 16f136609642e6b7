"""vLLM's own HTTP app on our engine.

- `app`: the app and its routes; `proxy`: the engine client that it runs on; `running_requests`: its submissions to the
  engine.
- `body_intake`: validates request bodies in front of the app; `document_reader`: parses them within the limits,
  without empty fields; `untrusted_fields`: fields that are removed; `invocations`: bodies for SageMaker's endpoint.
- `error_normalizer`: error responses as ours; `stream_errors`: errors in streams that have begun; `expected_errors`:
  keeps errors that clients cause out of the log.
"""
