-- Which licences of weights a team may use: SPDX ids, any where there are none.
ALTER TABLE teams ADD COLUMN allowed_licences text[] NOT NULL DEFAULT '{}';
