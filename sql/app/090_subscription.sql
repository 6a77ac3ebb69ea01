-- What an org pays for, as the payment provider's webhook last reported it.

create table public.subscription (
    org_id text primary key references public.organization on delete cascade,
    plan text not null default 'free' check (plan <> ''),
    status text not null default 'active'
        check (
            status in
            ('incomplete', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled')
        ),
    cancel_at_period_end boolean not null default false,
    current_period_end timestamptz,
    provider text,
    provider_customer_id text,
    provider_subscription_id text unique,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

comment on table public.subscription is
    'An org''s subscription. Audited: subscription.created, subscription.plan_changed, '
    'subscription.cancel_scheduled, subscription.cancel_withdrawn, subscription.canceled, '
    'subscription.reactivated, subscription.updated, subscription.deleted. Before the provider '
    'answers no row changes: subscription.checkout_started, subscription.change_requested and '
    'subscription.cancel_requested come from pgaudit_wf.record_event.';
comment on column public.subscription.org_id is 'The org that pays; it has one subscription.';
comment on column public.subscription.plan is 'The plan in force, not the one asked for.';
comment on column public.subscription.status is
    'The provider''s word for where it stands: incomplete, trialing, active, past_due, unpaid, '
    'paused or canceled.';
comment on column public.subscription.cancel_at_period_end is
    'It still runs, and ends at current_period_end.';
comment on column public.subscription.current_period_end is
    'Until when it is paid for. Null: no period, as on the free plan.';
comment on column public.subscription.provider is
    'Who takes the payments. Null: nobody, as on the free plan.';
comment on column public.subscription.provider_customer_id is 'The org''s id at the provider.';
comment on column public.subscription.provider_subscription_id is
    'The subscription''s id at the provider.';
comment on column public.subscription.created_at is 'When the org first subscribed.';
comment on column public.subscription.updated_at is
    'When the application last saved the row. Not audited.';
