-- A request id is tied to its body before the mutation runs; the answer comes after.
ALTER TABLE requests ALTER COLUMN answer DROP NOT NULL;
