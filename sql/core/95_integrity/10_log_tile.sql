-- Tamper evidence: the log's events and the versions of workflows as leaves of a Merkle tree (RFC 6962), kept as C2SP tlog-tiles,
-- with signed checkpoints. Written by `pgaudit-wf seal`, a reader of the log, so that it costs the write path nothing; the key that
-- signs is never here. docs/how-to/integrity.md describes what a leaf is, field by field.
--
-- Verification trusts nothing here: the owner of the database can change these tables too, but not so that they match a checkpoint
-- of which a copy is kept elsewhere.

create table pgaudit_wf.log_tile ( -- noqa: PRS
    level smallint not null,
    tile_number bigint not null,
    hashes bytea not null,
    primary key (level, tile_number),
    constraint log_tile_hashes check (length(hashes) % 32 = 0 and length(hashes) between 32 and 8192)
);
comment on table pgaudit_wf.log_tile is
    'The tree, as C2SP tlog-tiles cuts it up: 256 hashes a tile. One that is not full yet grows. Tiles outlive the events.';
comment on column pgaudit_wf.log_tile.level is '0: hashes of leaves; above, each hash is the root of a full tile below.';
comment on column pgaudit_wf.log_tile.tile_number is 'Number of the tile in its level, from 0.';
comment on column pgaudit_wf.log_tile.hashes is 'Up to 256 SHA-256 hashes, one after the other; a tile of a smaller tree is its beginning.';
-- Hashes do not compress, and are read as a whole.
alter table pgaudit_wf.log_tile alter column hashes set storage external; -- noqa: PRS

create table pgaudit_wf.log_leaf (
    leaf_index bigint primary key,
    event_id bigint,
    tx_id bigint,
    occurred_at timestamptz,
    workflow_id text,
    version integer,
    salt bytea,
    snapshot bytea,
    chain text,
    org_number bigint,
    org_previous bytea,
    constraint log_leaf_subject check (num_nonnulls(event_id, tx_id, occurred_at) in (0, 3) and num_nonnulls(workflow_id, version) in (0, 2)
        and (event_id is null) <> (workflow_id is null)),
    constraint log_leaf_salt check (length(salt) = 16),
    constraint log_leaf_snapshot check (length(snapshot) = 32),
    constraint log_leaf_chain check (num_nonnulls(chain, org_number) in (0, 2)
        and case when org_number > 1 then length(org_previous) = 32 else org_previous is null end)
);
comment on table pgaudit_wf.log_leaf is
    'Which event, or version of a workflow, each leaf of the tree is, and the secret of its commitments. For the owner only.';
comment on column pgaudit_wf.log_leaf.leaf_index is 'Number of the leaf, from 0.';
comment on column pgaudit_wf.log_leaf.event_id is 'id of the event; null for a version.';
comment on column pgaudit_wf.log_leaf.tx_id is 'Its tx_id.';
comment on column pgaudit_wf.log_leaf.occurred_at is 'Its occurred_at.';
comment on column pgaudit_wf.log_leaf.workflow_id is 'workflow_id of the version; null for an event.';
comment on column pgaudit_wf.log_leaf.version is 'Its number.';
comment on column pgaudit_wf.log_leaf.salt is
    'Random; with it the commitments of the leaf can be opened. Null once part of it was erased: log_kept holds the rest.';
comment on column pgaudit_wf.log_leaf.snapshot is 'Commitment to a version''s snapshot, which may be pruned before the version.';
comment on column pgaudit_wf.log_leaf.chain is
    'Whose leaf it is: org/ and the id of an organization; configuration: what the database recorded about the trail itself; none. '
    'Null for a leaf of format /1, which has no number.';
comment on column pgaudit_wf.log_leaf.org_number is 'Its number among the leaves of its chain, from 1.';
comment on column pgaudit_wf.log_leaf.org_previous is 'Hash of the leaf before it in its chain; null for the first.';
-- Tells a sealer where a chain ends, and that no number is given twice.
create unique index log_leaf_chain on pgaudit_wf.log_leaf (chain, org_number) where chain is not null;
create unique index log_leaf_event on pgaudit_wf.log_leaf (event_id, tx_id) where event_id is not null;
create unique index log_leaf_version on pgaudit_wf.log_leaf (workflow_id, version) where workflow_id is not null;

create table pgaudit_wf.log_kept (
    leaf_index bigint not null references pgaudit_wf.log_leaf (leaf_index),
    part text not null,
    key bytea,
    commitment bytea,
    release_id bigint,
    masks jsonb not null default '[]',
    primary key (leaf_index, part),
    constraint log_kept_rest check (num_nonnulls(key, commitment) = 1 and length(coalesce(key, commitment)) = 32),
    constraint log_kept_release check ((commitment is null) = (release_id is null))
);
comment on table pgaudit_wf.log_kept is 'What is left of the secret of a leaf after an erasure. For the owner only.';
comment on column pgaudit_wf.log_kept.leaf_index is 'The leaf.';
comment on column pgaudit_wf.log_kept.part is 'Part of the leaf that is committed to: who, diff/0, metadata/0, …';
comment on column pgaudit_wf.log_kept.key is 'Key of the part''s commitment, where its value is still there.';
comment on column pgaudit_wf.log_kept.commitment is
    'The commitment, where the value was erased: it proves nothing about the value without the key, which is gone.';
comment on column pgaudit_wf.log_kept.release_id is
    'id of the event that says that the value was erased: actor.pseudonymised or audit.history_pruned.';
comment on column pgaudit_wf.log_kept.masks is
    'What erasures put in place of the value: the id of the event and SHA-256 of the text, in hex, of each ([[id, hash], …]).';

create table pgaudit_wf.log_checkpoint (
    size bigint primary key,
    origin text not null,
    root bytea not null,
    sealed_at timestamptz not null default now(),
    note text,
    constraint log_checkpoint_size check (size > 0),
    constraint log_checkpoint_root check (length(root) = 32)
);
comment on table pgaudit_wf.log_checkpoint is
    'What the log commits to: the tree''s root at each size at which it was sealed, as C2SP tlog-checkpoint has it.';
comment on column pgaudit_wf.log_checkpoint.size is 'Leaves in the tree.';
comment on column pgaudit_wf.log_checkpoint.origin is 'Name of the log, which is also the name of its key.';
comment on column pgaudit_wf.log_checkpoint.root is 'Root of the tree of that size.';
comment on column pgaudit_wf.log_checkpoint.sealed_at is 'When it was sealed, by the database''s clock.';
comment on column pgaudit_wf.log_checkpoint.note is
    'The signed note; null between the commit of the tree and its signature, so that no two trees of one size are ever signed.';

create table pgaudit_wf.log_cosignature (
    size bigint not null references pgaudit_wf.log_checkpoint (size),
    line text not null,
    added_at timestamptz not null default now(),
    primary key (size, line),
    constraint log_cosignature_line check (line ~ '^— [^[:space:]+]+ [A-Za-z0-9+/]+=*$')
);
comment on table pgaudit_wf.log_cosignature is 'Signatures of witnesses under checkpoints (C2SP tlog-cosignature).';
comment on column pgaudit_wf.log_cosignature.size is 'The checkpoint.';
comment on column pgaudit_wf.log_cosignature.line is 'The line of the signed note, without its newline.';
comment on column pgaudit_wf.log_cosignature.added_at is 'When it was added.';

create table pgaudit_wf.log_timestamp (
    size bigint not null references pgaudit_wf.log_checkpoint (size),
    response_hash bytea not null,
    response bytea not null,
    added_at timestamptz not null default now(),
    primary key (size, response_hash),
    constraint log_timestamp_response check (length(response) between 1 and 65536),
    constraint log_timestamp_hash check (response_hash = sha256(response))
);
comment on table pgaudit_wf.log_timestamp is 'Time-stamps of checkpoints (RFC 3161).';
comment on column pgaudit_wf.log_timestamp.size is 'The checkpoint; its note was stamped.';
comment on column pgaudit_wf.log_timestamp.response_hash is 'SHA-256 of the response.';
comment on column pgaudit_wf.log_timestamp.response is 'The time-stamp authority''s response, which contains the token, in DER.';
comment on column pgaudit_wf.log_timestamp.added_at is 'When it was added.';

create table pgaudit_wf.version_place (
    system_identifier bigint primary key,
    below_tx bigint not null,
    noted_at timestamptz not null default now()
);
comment on table pgaudit_wf.version_place is 'How far workflow_history was sealed, for each cluster that the log has been in.';
comment on column pgaudit_wf.version_place.system_identifier is 'The cluster.';
comment on column pgaudit_wf.version_place.below_tx is 'Every version saved by a transaction below this one is sealed.';
comment on column pgaudit_wf.version_place.noted_at is 'When it last moved on.';

create function pgaudit_wf._refuse_tree_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set bytea_output = 'hex'
as $$
declare
    was constant jsonb := to_jsonb(old);
    is_now constant jsonb := to_jsonb(new);
    allowed boolean;
begin
    if pgaudit_wf._is_applied() then
        return case when tg_op = 'DELETE' then old else new end;
    end if;
    -- What may happen to what was written: a tile grows, a checkpoint is signed, a secret is destroyed.
    allowed := case tg_table_name
        when 'log_tile' then is_now - 'hashes' = was - 'hashes' and starts_with(is_now ->> 'hashes', was ->> 'hashes')
        when 'log_checkpoint' then was ->> 'note' is null and is_now - 'note' = was - 'note'
        when 'log_leaf' then is_now ->> 'salt' is null and is_now - 'salt' = was - 'salt'
        else is_now ->> 'key' is null
            and is_now - '{key,commitment,release_id,masks}'::text[] = was - '{key,commitment,release_id,masks}'::text[]
            and (was ->> 'key' is not null or is_now - 'masks' = was - 'masks' and is_now -> 'masks' @> (was -> 'masks'))
    end;
    if allowed then
        return new;
    end if;
    raise exception 'what was sealed in pgaudit_wf.% cannot be changed', tg_table_name
        using errcode = 'PA501',
            hint = 'A tile grows, a checkpoint is signed once, a secret is destroyed by pseudonymise(); nothing else may change.';
end
$$;
comment on function pgaudit_wf._refuse_tree_change() is 'Trigger of the tree''s tables: raises PA501 on an UPDATE of what was sealed.';

create trigger append_only_row before update on pgaudit_wf.log_tile for each row execute function pgaudit_wf._refuse_tree_change();
create trigger append_only_row before update on pgaudit_wf.log_leaf for each row execute function pgaudit_wf._refuse_tree_change();
create trigger append_only_row before update on pgaudit_wf.log_kept for each row execute function pgaudit_wf._refuse_tree_change();
create trigger append_only_row before update on pgaudit_wf.log_checkpoint for each row execute function pgaudit_wf._refuse_tree_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_tile for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_leaf for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_kept for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_checkpoint
    for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only before update or delete or truncate on pgaudit_wf.log_cosignature
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.log_tile enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_leaf enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_kept enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_checkpoint enable always trigger append_only_row, enable always trigger append_only;
create trigger append_only before update or delete or truncate on pgaudit_wf.log_timestamp
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.log_cosignature enable always trigger append_only;
alter table pgaudit_wf.log_timestamp enable always trigger append_only;

create function pgaudit_wf._chain_heads(chains text[]) returns table (chain text, org_number bigint, leaf bytea)
language sql stable
set search_path = pg_catalog, pg_temp
-- A plan made while there were few leaves would read all of them for each chain.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
    select wanted.chain, head.org_number, (
        select substr(t.hashes, (head.leaf_index % 256 * 32 + 1)::integer, 32)
        from pgaudit_wf.log_tile as t where t.level = 0 and t.tile_number = head.leaf_index / 256)
    from unnest(_chain_heads.chains) as wanted (chain)
    cross join lateral (
        select l.org_number, l.leaf_index from pgaudit_wf.log_leaf as l
        where l.chain = wanted.chain order by l.org_number desc limit 1) as head
$$;
comment on function pgaudit_wf._chain_heads(text[]) is 'The last leaf of each chain that has any: its number in the chain, and its hash.';

create function pgaudit_wf._whole_row(op jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when jsonb_typeof(op) <> 'object' then null
        when op - 'value' = '{"op": "add", "path": ""}' and jsonb_typeof(op -> 'value') = 'object' then op -> 'value'
        when op - 'old' = '{"op": "remove", "path": ""}' and jsonb_typeof(op -> 'old') = 'object' then op -> 'old'
    end
$$;
comment on function pgaudit_wf._whole_row(jsonb) is
    'The row that an operation of a diff adds or removes as a whole; null for any other operation.';

create function pgaudit_wf._event_parts(event pgaudit_wf.security_audit_log) returns table (part text, content text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with op as (
        select listed.value, listed.number
        from jsonb_array_elements(case when jsonb_typeof((event).diff) = 'array' then (event).diff else '[]' end)
            with ordinality as listed (value, number)
    )
    select 'who', json_build_array((event).actor_label, (event).ip, (event).user_agent)::text
    union all
    select 'diff/' || row_number() over (order by piece.op_number, piece.member) - 1, piece.content
    from (
        select op.number as op_number, 0::bigint as member,
            case when pgaudit_wf._whole_row(op.value) is null then op.value::text else (op.value -> 'op')::text end as content
        from op
        union all
        select op.number, member.number, to_json(member.key)::text || ': ' || member.value::text
        from op,
            jsonb_each(pgaudit_wf._whole_row(op.value)) with ordinality as member (key, value, number)
    ) as piece
    union all
    select 'diff', (event).diff::text where jsonb_typeof((event).diff) <> 'array'
    union all
    select 'metadata/' || member.number - 1, to_json(member.key)::text || ': ' || member.value::text
    from jsonb_each(case when jsonb_typeof((event).metadata) = 'object' then (event).metadata else '{}' end)
        with ordinality as member (key, value, number)
    union all
    select 'metadata', (event).metadata::text where jsonb_typeof((event).metadata) <> 'object'
$$;
comment on function pgaudit_wf._event_parts(pgaudit_wf.security_audit_log) is
    'The parts of an event to which its leaf holds commitments: who (label, address, user agent), '
    'each operation of the diff or column of a row, each member of metadata.';

create function pgaudit_wf._version_parts(version pgaudit_wf.workflow_history) returns table (part text, content text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select 'who', json_build_array((version).actor_label)::text
    union all select 'change', (version).change::text
    union all select 'snapshot', (version).snapshot::text where (version).snapshot is not null
$$;
comment on function pgaudit_wf._version_parts(pgaudit_wf.workflow_history) is 'The parts of a version to which its leaf holds commitments.';

create function pgaudit_wf._mask_of(content text, release_id bigint) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when content is null then '[]'
        else jsonb_build_array(jsonb_build_array(release_id, encode(sha256(convert_to(content, 'UTF8')), 'hex'))) end
$$;
comment on function pgaudit_wf._mask_of(text, bigint) is
    'What log_kept.masks has of a text that an erasure puts in place of another; an empty array if it leaves none.';

create function pgaudit_wf._keep_parts(
    leaf_index bigint, before_parts text[], before_contents text[], after_parts text[], after_contents text[], release_id bigint
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    secret constant bytea := (select l.salt from pgaudit_wf.log_leaf as l where l.leaf_index = _keep_parts.leaf_index);
begin
    if secret is null then
        -- Not the first erasure in it.
        update pgaudit_wf.log_kept as k
        set key = null,
            commitment = coalesce(k.commitment, sha256(k.key || convert_to(was.content, 'UTF8'))),
            release_id = coalesce(k.release_id, _keep_parts.release_id),
            masks = k.masks || pgaudit_wf._mask_of(becomes.content, _keep_parts.release_id)
        from unnest(before_parts, before_contents) as was (part, content)
        left join unnest(after_parts, after_contents) as becomes (part, content) on becomes.part = was.part
        where k.leaf_index = _keep_parts.leaf_index and k.part = was.part and becomes.content is distinct from was.content
            -- The same once more: in the archive, and then in the log.
            and (k.key is not null or not k.masks @> pgaudit_wf._mask_of(becomes.content, _keep_parts.release_id));
        return;
    end if;
    insert into pgaudit_wf.log_kept (leaf_index, part, key, commitment, release_id, masks)
    select _keep_parts.leaf_index, was.part,
        case when becomes.content = was.content then own.key end,
        case when becomes.content = was.content then null else sha256(own.key || convert_to(was.content, 'UTF8')) end,
        case when becomes.content = was.content then null else _keep_parts.release_id end,
        case when becomes.content = was.content then '[]' else pgaudit_wf._mask_of(becomes.content, _keep_parts.release_id) end
    from unnest(before_parts, before_contents) as was (part, content)
    left join unnest(after_parts, after_contents) as becomes (part, content) on becomes.part = was.part,
    lateral (select sha256(secret || convert_to(was.part, 'UTF8')) as key) as own;
    update pgaudit_wf.log_leaf as l set salt = null where l.leaf_index = _keep_parts.leaf_index;
end
$$;
comment on function pgaudit_wf._keep_parts(bigint, text[], text[], text[], text[], bigint) is
    'Keeps the commitments to those parts of a leaf that are about to change, and of the others the keys, and hashes of what comes in '
    'their place; destroys the leaf''s secret.';

create function pgaudit_wf._lock_seal() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from pgaudit_wf.reader as r where r.name = 'seal' for update;
end
$$;
comment on function pgaudit_wf._lock_seal() is 'Waits for a sealer at work and keeps others out until the end of the transaction.';

create function pgaudit_wf._keep_commitments(
    was pgaudit_wf.security_audit_log, becomes pgaudit_wf.security_audit_log, release_id bigint
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    sealed constant bigint := (
        select l.leaf_index from pgaudit_wf.log_leaf as l where l.event_id = (was).id and l.tx_id = (was).tx_id limit 1);
begin
    if sealed is not null and was is distinct from becomes then
        perform pgaudit_wf._keep_parts(sealed,
            array(select p.part from pgaudit_wf._event_parts(was) as p order by p.part),
            array(select p.content from pgaudit_wf._event_parts(was) as p order by p.part),
            array(select p.part from pgaudit_wf._event_parts(becomes) as p order by p.part),
            array(select p.content from pgaudit_wf._event_parts(becomes) as p order by p.part), release_id);
    end if;
end
$$;
comment on function pgaudit_wf._keep_commitments(pgaudit_wf.security_audit_log, pgaudit_wf.security_audit_log, bigint) is
    'Before an event is masked: keeps what its leaf needs so that the masked event still verifies, '
    'and destroys the secret with which what is masked could be guessed. Call _lock_seal() first.';

create function pgaudit_wf._keep_commitments(
    was pgaudit_wf.workflow_history, becomes pgaudit_wf.workflow_history, release_id bigint
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    sealed constant bigint := (
        select l.leaf_index from pgaudit_wf.log_leaf as l where l.workflow_id = (was).workflow_id and l.version = (was).version);
begin
    if sealed is not null and was is distinct from becomes then
        perform pgaudit_wf._keep_parts(sealed,
            array(select p.part from pgaudit_wf._version_parts(was) as p order by p.part),
            array(select p.content from pgaudit_wf._version_parts(was) as p order by p.part),
            array(select p.part from pgaudit_wf._version_parts(becomes) as p order by p.part),
            array(select p.content from pgaudit_wf._version_parts(becomes) as p order by p.part), release_id);
    end if;
end
$$;
comment on function pgaudit_wf._keep_commitments(pgaudit_wf.workflow_history, pgaudit_wf.workflow_history, bigint) is
    'The same for a version of a workflow.';
