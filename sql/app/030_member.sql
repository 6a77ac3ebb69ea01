-- Who belongs to which org, from the invitation on. An invitation is a member that has not joined
-- yet, so that
-- who was invited, in which role and by whom stays one story about one resource.

create table public.member (
    org_id text not null references public.organization on delete cascade,
    user_id text not null references public.app_user on delete cascade,
    role text not null default 'member' check (role in ('owner', 'admin', 'member')),
    status text not null default 'active' check (status in ('invited', 'active')),
    created_at timestamptz not null default now(),
    primary key (org_id, user_id)
);

create index member_user_id_idx on public.member (user_id);

comment on table public.member is
    'Membership of a person in an org. Audited: member.invited, member.joined, member.role_changed, '
    'member.removed.';
comment on column public.member.org_id is 'The org.';
comment on column public.member.user_id is 'The person.';
comment on column public.member.role is
    'owner and admin may read the org''s audit trail, member may not.';
comment on column public.member.status is
    'invited until the person accepts, then active. Only an active member has the role''s rights.';
comment on column public.member.created_at is
    'When the person was invited or, without an invitation, joined.';
